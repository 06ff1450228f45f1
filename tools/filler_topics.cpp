#include "tools/filler_topics.h"

namespace tiercel {

const FillerTopic kFillerTopics[] = {
    {"orchards and gardens",
     "growers|gardeners|orchard owners|seasonal pickers|beekeepers|nursery workers|neighbours|seed "
     "savers",
     "pear tree|watering can|compost heap|pruning knife|seedling tray|hedge|trellis|rain "
     "barrel|raised bed|wheelbarrow|apple ladder|mulch layer|cold frame|bean row|root ball|rose "
     "bush",
     "prune the lower branches|turn the compost|thin the seedlings|tie back the vines|water the "
     "roots slowly|sow a second row of beans|cover the beds with straw|graft a young shoot|sharpen "
     "the shears|collect fallen fruit",
     "in the orchard|behind the greenhouse|along the south wall|near the old well|at the edge of "
     "the meadow|under the plum trees",
     "ripe|dry|overgrown|frost damaged|well drained|shaded|newly planted|waterlogged|pest "
     "free|brittle",
     "the fruit keeps longer in storage|slugs lose interest in the leaves|the soil stays moist "
     "through a dry week|blossoms appear earlier than usual|bees visit the rows more often|roots "
     "spread deeper into the clay"},
    {"bread and kitchens",
     "bakers|apprentices|kitchen hands|home cooks|millers|pastry chefs|market vendors|recipe "
     "testers",
     "sourdough starter|oven stone|rolling pin|mixing bowl|rye loaf|proofing basket|flour "
     "bin|bread knife|cooling rack|copper pot|spice jar|pie crust|dough scraper|butter dish|stock "
     "pot|soup ladle",
     "knead the dough by hand|feed the starter|preheat the oven|fold in the butter|sift the flour "
     "twice|rest the batter overnight|score the top of the loaf|simmer the broth|toast the "
     "seeds|weigh the salt",
     "in the kitchen|next to the oven|on the marble table|at the back of the bakery|in the cool "
     "pantry|beside the open window",
     "golden|sticky|underproofed|crisp|lukewarm|evenly browned|too salty|airy|stale|freshly ground",
     "the crust crackles when it cools|the crumb turns out more open|steam escapes without tearing "
     "the loaf|the flavour deepens overnight|the dough stops sticking to the bench|the pastry "
     "holds its shape"},
    {"storage systems",
     "administrators|storage engineers|operators|database teams|backup services|compaction "
     "workers|clients|auditors",
     "write buffer|index block|snapshot|replica|checkpoint|journal|tombstone|shard|cache line|page "
     "table|bloom filter|manifest|commit log|cold tier|block device|read path",
     "flush the write buffer|rebuild the index|verify the checksum|rotate the journal|promote a "
     "replica|drain the queue|compact the older segments|evict cold pages|replay the log|throttle "
     "background writes",
     "on the primary|in the cold tier|behind the load balancer|within the same rack|across both "
     "regions|at the storage layer",
     "stale|consistent|read only|fragmented|fully replicated|corrupted|warm|overloaded|write "
     "protected|rebalanced",
     "reads no longer wait for a merge|the tail latency settles|recovery takes minutes instead of "
     "hours|space is returned to the pool|duplicate rows are dropped silently|the follower catches "
     "up with the leader"},
    {"networks and protocols",
     "routers|network engineers|edge servers|packet filters|support teams|browsers|relay "
     "hosts|field technicians",
     "handshake|routing table|header field|timeout|retry "
     "policy|proxy|certificate|socket|congestion window|name server|gateway|keepalive "
     "timer|session ticket|fragment|firewall rule|uplink",
     "renew the certificate|inspect the headers|lower the timeout|close idle sockets|trace the "
     "slow hop|announce a shorter route|cache the answer|rate limit the endpoint|mirror the "
     "traffic|restart the resolver",
     "on the gateway|at the edge|between two data centres|behind the proxy|inside the tunnel|on "
     "the guest network",
     "idle|unreachable|encrypted|malformed|saturated|half open|trusted|asymmetric|rate "
     "limited|multiplexed",
     "retries stop piling up|packets arrive in order again|the connection survives a roaming "
     "client|the page loads before the images do|a single lost segment costs less|the resolver "
     "answers from memory"},
    {"sailing and harbours",
     "sailors|harbour masters|dock hands|ferry captains|chart makers|fishing crews|pilots|rope "
     "makers",
     "main sail|anchor chain|tide table|compass|mooring line|hull|rudder|lighthouse|cargo "
     "net|buoy|bilge pump|gangway|life raft|sextant|jib|harbour wall",
     "reef the sail|check the moorings|read the tide table|oil the winch|haul in the nets|sound "
     "the depth|signal the pilot boat|patch the hull|coil the ropes|trim the jib",
     "in the outer harbour|off the northern cape|beside the fish market|along the breakwater|below "
     "deck|at the ferry pier",
     "seaworthy|slack|barnacled|becalmed|freshly painted|leaking|steady|salt "
     "stained|ballasted|storm battered",
     "the boat points higher into the wind|the crew can sleep in turns|the fog lifts before "
     "noon|the ropes stop chafing|gulls gather over the wake|the swell eases behind the cape"},
    {"railways and travel",
     "conductors|signal workers|commuters|track inspectors|timetable "
     "planners|drivers|tourists|freight clerks",
     "branch line|signal box|platform clock|sleeper car|ticket window|level "
     "crossing|viaduct|locomotive|waiting room|luggage rack|freight "
     "wagon|timetable|tunnel|switch|dining car|station bell",
     "couple the wagons|announce the delay|inspect the rails|punch the tickets|clear snow from the "
     "switch|publish the winter timetable|hold the connecting train|repaint the platform edge|load "
     "the mail|check the brakes",
     "at the junction|on the mountain line|under the station roof|in the marshalling yard|near the "
     "viaduct|on platform two",
     "delayed|electrified|crowded|punctual|rusty|out of service|narrow gauge|fully "
     "booked|restored|dimly lit",
     "passengers reach the coast before lunch|the express overtakes the local|fewer trains wait at "
     "the junction|the valley stays connected in winter|freight moves at night|the ride becomes "
     "much smoother"},
    {"weather and seasons",
     "forecasters|observers|farmers|mountain guides|pilots|volunteers|station keepers|researchers",
     "rain gauge|cold front|pressure map|weather balloon|snow field|wind vane|thunderhead|drought "
     "index|dew point|barometer|fog bank|satellite image|storm warning|thermometer|ice sheet|sea "
     "breeze",
     "read the barometer|launch the balloon|compare the models|warn the coastal towns|measure the "
     "snow depth|record the rainfall|watch the western sky|calibrate the sensors|issue a frost "
     "warning|average the readings",
     "over the plateau|on the windward side|at the summit station|along the coast|above the "
     "valley|in the river delta",
     "humid|overcast|unseasonably warm|gusty|clear|unstable|freezing|calm|hazy|thundery",
     "the first frost comes late|rivers rise within hours|the haze clears by evening|swallows "
     "leave earlier|the snow line climbs|crops need less water"},
    {"libraries and archives",
     "librarians|archivists|readers|bookbinders|cataloguers|historians|donors|conservators",
     "reading room|card catalogue|manuscript|map drawer|microfilm|book cart|bindery|index "
     "card|ledger|folio|dust jacket|rare print|periodical|shelf mark|lending desk|parchment",
     "repair the spine|catalogue the donations|air the stacks|digitise the maps|shelve the "
     "returns|trace a missing volume|press the loose pages|transcribe the letters|label the "
     "boxes|renew the loan",
     "in the reading room|on the third floor|behind the lending desk|in the map cabinet|among the "
     "folios|in the basement stacks",
     "faded|out of print|misfiled|fragile|annotated|well thumbed|uncut|mildewed|reserved|gilt "
     "edged",
     "the ink stops flaking|scholars find the volume without help|the humidity stays even|the "
     "oldest letters can be shown again|returns reach the shelf the same day|the collection grows "
     "by a shelf a month"},
    {"music and instruments",
     "violinists|organ builders|choir members|piano tuners|composers|stage hands|critics|music "
     "teachers",
     "cello bow|tuning fork|score|organ pipe|snare drum|metronome|reed|concert hall|chorus|music "
     "stand|string section|rehearsal plan|brass band|overture|melody|pedal",
     "tune the strings|rehearse the slow movement|copy the parts|replace a worn reed|mark the "
     "bowings|count the rests|warm up the voices|polish the brass|seat the audience|transpose the "
     "solo",
     "in the concert hall|on the small stage|in the rehearsal room|at the conservatory|beneath the "
     "organ loft|in the village church",
     "out of tune|resonant|muted|well "
     "rehearsed|syncopated|delicate|brassy|slow|unfinished|harmonious",
     "the second theme finally breathes|the balance with the choir improves|the hall carries even "
     "a whisper|players hear each other better|the final chord rings clear|the tempo no longer "
     "drags"},
    {"medicine and clinics",
     "nurses|doctors|patients|pharmacists|paramedics|physiotherapists|lab assistants|midwives",
     "blood sample|waiting list|bandage|thermometer|ward|prescription|stethoscope|night "
     "shift|vaccine fridge|treatment plan|consulting room|wheelchair|sterile tray|chart|recovery "
     "room|dosage",
     "take the pulse|change the dressing|label the samples|explain the side effects|wash the hands "
     "thoroughly|update the chart|schedule a follow up visit|store the vaccines cold|rest the "
     "injured knee|measure the dose",
     "on the ward|at the rural clinic|in the laboratory|by the bedside|in the pharmacy|at the "
     "front desk",
     "sterile|swollen|stable|overdue|mild|contagious|well tolerated|chronic|understaffed|fully "
     "healed",
     "patients sleep through the night|the fever drops within a day|waiting times become "
     "shorter|the wound heals without a scar|fewer visits are missed|the samples arrive in good "
     "condition"},
    {"software testing",
     "maintainers|reviewers|contributors|test authors|release managers|users|on call "
     "engineers|interns",
     "unit test|flaky assertion|build cache|pull request|coverage report|fixture|mock "
     "server|linter|stack trace|regression|nightly build|bug report|test "
     "matrix|changelog|branch|release note",
     "reproduce the failure|bisect the history|pin the dependency|mock the clock|delete dead "
     "branches|write a failing test first|rerun the nightly build|review the patch|update the "
     "changelog|split the large function",
     "on the main branch|in continuous integration|in a fresh container|on the staging host|under "
     "the sanitizer|in the release candidate",
     "flaky|deterministic|undocumented|green|deprecated|slow|well covered|obsolete|isolated|merged",
     "the build finishes before the coffee is ready|regressions surface within a day|reviewers ask "
     "fewer questions|the release goes out on time|failures point at the guilty line|new "
     "contributors find their way"},
    {"astronomy and telescopes",
     "astronomers|amateurs|night assistants|mirror makers|students|survey teams|instrument "
     "builders|planetarium guides",
     "primary mirror|star chart|comet tail|dome shutter|spectrum|eyepiece|guide "
     "star|nebula|tracking motor|eclipse|filter wheel|observing log|double star|lunar crater|radio "
     "dish|meteor shower",
     "align the finder|open the dome|cool the detector|sketch the nebula|time the eclipse|clean "
     "the mirror|stack the exposures|point at the guide star|subtract the background|note the "
     "seeing",
     "at the observatory|on the ridge|under a moonless sky|inside the dome|in the control room|at "
     "the focus",
     "faint|overexposed|circumpolar|well "
     "collimated|blurred|variable|distant|reddened|eclipsed|steady",
     "fainter galaxies come into view|the stars shrink to sharp points|trails vanish from the "
     "frame|the spectrum shows a second line|the comet can be followed till dawn|the moon no "
     "longer washes out the field"},
    {"carpentry and workshops",
     "carpenters|joiners|cabinet makers|apprentices|restorers|sawmill workers|tool "
     "sharpeners|upholsterers",
     "dovetail joint|hand plane|oak plank|workbench|glue pot|chisel|drawer front|bevel "
     "gauge|clamp|veneer|lathe|saw blade|tenon|rocking chair|varnish|picture frame",
     "plane the edge square|cut the tenons|clamp the joint overnight|sand with the grain|sharpen "
     "the chisel|oil the table top|mark the waste side|steam the bent parts|fit the hinges|season "
     "the boards",
     "on the workbench|in the drying shed|at the sawmill|beside the lathe|in the back room|under "
     "the skylight",
     "warped|square|seasoned|splintered|dovetailed|hand finished|loose|polished|knotty|flush",
     "the drawer slides without a sound|the joint holds without nails|the grain shows its full "
     "colour|splinters disappear|the table stops rocking|the finish survives hot cups"},
    {"rivers and bridges",
     "surveyors|lock keepers|bridge engineers|bargemen|anglers|hydrologists|divers|canal boaters",
     "stone arch|lock gate|sluice|pier|towpath|flood gauge|sandbank|weir|cable stay|expansion "
     "joint|river bed|ferry landing|dredger|culvert|embankment|footbridge",
     "open the sluice|inspect the piers|dredge the channel|repoint the masonry|measure the "
     "current|close the lock gate|tighten the cables|raise the embankment|clear driftwood|survey "
     "the bed",
     "at the weir|below the old bridge|on the left bank|in the upper basin|along the towpath|at "
     "the river mouth",
     "navigable|silted|swollen|load bearing|eroded|shallow|reinforced|tidal|flooded|slow moving",
     "barges pass without waiting|the arch carries the load evenly|spring floods spare the "
     "village|the channel keeps its depth|salmon return to the upper reach|traffic can use both "
     "lanes"},
    {"schools and teaching",
     "teachers|pupils|tutors|parents|headmasters|exchange students|examiners|school librarians",
     "lesson plan|blackboard|homework|spelling test|field trip|class reader|science fair|school "
     "bell|timetable|exercise book|group project|geometry set|essay|globe|report|playground",
     "read the chapter aloud|correct the essays|plan the field trip|explain fractions with "
     "apples|ring the bell|collect the homework|prepare the experiment|rearrange the desks|praise "
     "careful work|learn the poem by heart",
     "in the classroom|on the playground|in the science wing|during assembly|at the back row|in "
     "the school garden",
     "attentive|late|curious|well prepared|unfinished|noisy|optional|graded|bilingual|inspiring",
     "shy children raise their hands|the whole class remembers the poem|marks improve before the "
     "holidays|questions become more precise|the lesson ends with laughter|parents hear about it "
     "at dinner"},
    {"power and machines",
     "electricians|turbine technicians|plant "
     "operators|inspectors|lineworkers|mechanics|dispatchers|welders",
     "transformer|gearbox|cooling tower|circuit breaker|solar panel|steam valve|bearing|control "
     "rod|power line|generator|flywheel|fuse box|pressure gauge|wind turbine|battery bank|coolant "
     "pump",
     "grease the bearing|isolate the circuit|balance the rotor|bleed the valve|replace the "
     "fuse|synchronise the generator|log the temperatures|tighten the terminals|flush the "
     "coolant|test the relay",
     "in the turbine hall|on the substation roof|at the pumping station|behind the switchboard|on "
     "the factory floor|at the hydro plant",
     "overheated|grounded|idle|vibrating|calibrated|corroded|energised|sealed|redundant|undersized",
     "the vibration dies away|the grid frequency holds steady|the bearings last another "
     "season|losses fall during the night|the pump starts without a jolt|operators can leave the "
     "alarm silent"},
    {"mountains and walking",
     "hikers|hut wardens|guides|shepherds|climbers|trail crews|rescue teams|map readers",
     "rope bridge|summit cross|ridge path|mountain hut|ice axe|cairn|walking stick|rucksack|scree "
     "slope|glacier|pasture|contour line|waterfall|shelter|crampon|trail marker",
     "follow the cairns|fill the water bottles|rope up on the glacier|repair the path|leave before "
     "sunrise|dry the boots by the stove|check the forecast|cross the stream on stones|sign the "
     "hut book|rest at the saddle",
     "above the tree line|on the northern ridge|at the mountain hut|across the glacier|in the high "
     "valley|below the summit",
     "steep|snowed in|well marked|exposed|slippery|sunlit|remote|crumbling|gentle|windswept",
     "the view opens to the west|the climb feels shorter|the path stays dry after rain|walkers "
     "meet fewer crowds|the descent spares the knees|marmots can be heard from the rocks"},
    {"markets and trade",
     "merchants|stall holders|bookkeepers|buyers|shipping agents|customs "
     "officers|weavers|auctioneers",
     "price list|cloth bale|spice sack|weighing scale|warehouse|invoice|auction|market hall|copper "
     "coin|shop window|delivery cart|account book|barrel|sample case|contract|trade fair",
     "weigh the goods|settle the invoice|sweep the stall|compare the offers|unload the cart|count "
     "the stock|pack the fragile items|hang the price list|sign the contract|store the barrels",
     "at the market hall|by the harbour gate|in the warehouse|on the main square|at the trade "
     "fair|in the counting house",
     "profitable|perishable|overpriced|sealed|second hand|scarce|in "
     "stock|imported|unsold|bargained",
     "customers return the next week|prices settle by midday|less fruit is thrown away|the "
     "accounts balance at closing time|rare cloth finds a buyer|the carts leave half an hour "
     "earlier"},
    {"compilers and languages",
     "compiler writers|language designers|type checkers|parsers|library authors|students|tool "
     "builders|instruction selectors",
     "syntax tree|register allocator|inline hint|symbol table|lambda|loop nest|type "
     "parameter|lexer|error message|linker script|calling convention|macro|iterator|alias "
     "rule|constant folder|intermediate form",
     "fold the constants|hoist the invariant|spill a register|rename the variables|unroll the "
     "inner loop|check the bounds|resolve the symbols|lower the tree|infer the type|emit debug "
     "information",
     "in the front end|during lowering|at link time|inside the optimiser|in generic functions|at "
     "the call site",
     "recursive|undefined|well "
     "typed|inlined|ambiguous|vectorised|unreachable|volatile|generic|immutable",
     "the inner loop runs without a branch|error messages point to the cause|the binary shrinks by "
     "a third|two passes become one|the same source builds everywhere|the optimiser sees through "
     "the call"},
    {"theatre and film",
     "actors|set designers|directors|prop makers|extras|lighting crews|costume makers|ushers",
     "stage curtain|spotlight|script|dressing room|camera crane|prop table|costume rack|film "
     "reel|rehearsal|balcony scene|sound desk|make up kit|trap door|poster|encore|backdrop",
     "learn the lines|dim the lights|paint the backdrop|sew the costumes|cue the thunder|block the "
     "scene|rewind the reel|fit the wigs|sell the last tickets|strike the set",
     "on stage|in the wings|behind the curtain|in the front row|at the sound desk|on location",
     "sold out|improvised|underlit|dramatic|well cast|silent|overlong|rehearsed|comic|forgotten",
     "the second act gains pace|the audience holds its breath|the quiet lines can be heard at the "
     "back|scene changes go unnoticed|critics stay for the encore|the final image lingers"},
};
const int kNumFillerTopics = static_cast<int>(sizeof(kFillerTopics) / sizeof(kFillerTopics[0]));

}  // namespace tiercel
