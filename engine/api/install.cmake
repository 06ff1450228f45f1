# What `cmake --install` puts where: the command, the library, its two headers, and what finds them.
# All of it may be moved as a whole.
#
#   bin/tiercel   lib/libtiercel.so.*   include/tiercel/tiercel.h, tiercel_c.h
#   lib/cmake/tiercel/*                 find_package(tiercel), target tiercel::tiercel
#   lib/pkgconfig/tiercel.pc            pkg-config tiercel
#   share/tiercel/python, examples      the Python module with its pyproject.toml; programs
#   share/bash-completion, fish         completion of the command's flags
#   share/doc/tiercel                   README.md, LICENSE
include(CMakePackageConfigHelpers)
install(TARGETS tiercel_command RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(TARGETS tiercel_library EXPORT tiercel-targets
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES ${PROJECT_SOURCE_DIR}/engine/tiercel.h ${PROJECT_SOURCE_DIR}/engine/tiercel_c.h
        DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/tiercel)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/tiercel)
install(EXPORT tiercel-targets NAMESPACE tiercel:: FILE tiercel-config.cmake
        DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/tiercel-config-version.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/tiercel-config-version.cmake DESTINATION ${package_dir})

# From lib/pkgconfig up to the prefix; an absolute libdir cannot be moved anyway.
file(RELATIVE_PATH up_to_prefix /prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig /prefix)
configure_file(${PROJECT_SOURCE_DIR}/engine/api/tiercel.pc.in tiercel.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/tiercel.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

install(FILES ${PROJECT_SOURCE_DIR}/README.md ${PROJECT_SOURCE_DIR}/LICENSE
        DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/tiercel)

# The Python module (pip install PREFIX/share/tiercel/python, or PYTHONPATH) and the examples.
install(FILES ${PROJECT_SOURCE_DIR}/python/pyproject.toml
        DESTINATION ${CMAKE_INSTALL_DATADIR}/tiercel/python)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/python/tiercel
        DESTINATION ${CMAKE_INSTALL_DATADIR}/tiercel/python PATTERN "__pycache__" EXCLUDE)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/examples
        DESTINATION ${CMAKE_INSTALL_DATADIR}/tiercel PATTERN "__pycache__" EXCLUDE)

# The command writes its own completion.
foreach(shell_file "bash;bash-completion/completions/tiercel" "fish;fish/vendor_completions.d/tiercel.fish")
  list(GET shell_file 0 shell)
  list(GET shell_file 1 file)
  install(CODE "
    set(file \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_DATADIR}/${file}\")
    get_filename_component(folder \"\${file}\" DIRECTORY)
    file(MAKE_DIRECTORY \"\${folder}\")
    execute_process(COMMAND \"$<TARGET_FILE:tiercel_command>\" completion ${shell}
                    OUTPUT_FILE \"\${file}\" COMMAND_ERROR_IS_FATAL ANY)
    message(STATUS \"Installing: \${file}\")
    list(APPEND CMAKE_INSTALL_MANIFEST_FILES \"\${file}\")
  ")
endforeach()
