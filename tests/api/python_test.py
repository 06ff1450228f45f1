"""The Python module: what it adds to the C interface, and that nothing is lost on the way."""

import copy
import gc
import logging
import math
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import weakref

import tiercel
from python_binding_test import Binding  # noqa: F401  its cases run here too
from tiercel import _abi, _engine

MODEL = os.environ["TIERCEL_MODEL"]
PROMPT = (
    "Step 3 of the guide explains how part 7 of the machine is cleaned. " * 5
    + "\nThe magic number for silver-harbor is 48213.\n"
    + "Step 4 of the guide explains how part 9 of the machine is cleaned. " * 5
    + "\nWhat is the magic number for silver-harbor? The magic number for silver-harbor is"
)


class Module(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.engine = tiercel.Engine(MODEL, backend="cpu", threads=2)

    def test_stream_is_generate(self):
        with self.engine.session(budget=128, n_predict=16) as session:
            seen = []
            self.assertTrue(session.prefill(PROMPT, progress=lambda p: seen.append(p) or True))
            self.assertEqual(seen[-1].processed, seen[-1].total)
            self.assertEqual(seen[-1].total, len(session.tokens))
            pieces = list(session.stream(10))
            self.assertEqual(len(pieces), 10)
            self.assertEqual(session.finish_reason, "length")
            session.rewind()
            whole = session.generate(10)
            self.assertEqual(whole.tokens, [p.token for p in pieces])
            self.assertEqual(whole.text, "".join(p.text for p in pieces))
            self.assertTrue(whole.text.startswith(" 48213"), whole.text)
            self.assertEqual(session.generate(100).reason, "context full")
            self.assertEqual(session.stats()["generated_tokens"], 16)

    def test_a_stream_left_alone_computes_no_more(self):
        session = self.engine.session()
        session.prefill(PROMPT)
        for _ in session.stream(1000):
            break
        self.assertEqual(session.stats()["generated_tokens"], 1)

    def test_cancelling(self):
        session = self.engine.session()
        self.assertFalse(session.prefill(PROMPT, progress=lambda p: False))
        self.assertEqual(session.tokens, [])
        self.assertEqual(session.score(self.engine.tokenize(PROMPT), progress=lambda p: False), [])
        self.assertTrue(session.prefill(self.engine.tokenize(PROMPT)))
        n = session.n_tokens
        scores = session.score([5, 6, 7, 8], progress=lambda p: p.processed < n + 2)
        self.assertEqual((len(scores), session.n_tokens), (2, n + 2))
        self.assertTrue(all(score < 0 for score in scores))
        session.rewind()
        result = session.generate(9, lambda piece: False)
        self.assertEqual((len(result.tokens), result.reason), (1, "stopped"))

    def test_what_a_callback_raises_comes_through(self):
        session = self.engine.session()
        with self.assertRaises(ZeroDivisionError):
            session.prefill(PROMPT, progress=lambda p: 1 / 0)
        session.prefill(PROMPT)
        with self.assertRaises(KeyboardInterrupt):
            session.generate(4, self.interrupt)

    @staticmethod
    def interrupt(piece):
        raise KeyboardInterrupt

    def test_scores_and_logits(self):
        ids = self.engine.tokenize(PROMPT)
        session = self.engine.session()
        scores = session.score(ids)
        self.assertTrue(math.isnan(scores[0]) and all(s <= 0 for s in scores[1:]))
        logits = session.logits()
        self.assertEqual(len(logits), self.engine.info()["vocab_size"])
        best = max(range(len(logits)), key=logits.__getitem__)
        total = math.log(sum(math.exp(x - logits[best]) for x in logits))
        self.assertAlmostEqual(session.score([best])[0], -total, places=5)
        session.step(7)
        self.assertEqual(session.tokens, ids + [best, 7])

    def test_text_survives(self):
        text = "Grüße, 世界!\0 \U0001F600 end"
        ids = self.engine.tokenize(text, no_bos=True)
        self.assertEqual(self.engine.detokenize(ids), text)
        self.assertEqual(self.engine.tokenize(text)[1:], ids)
        self.assertEqual(self.engine.detokenize([]), "")

    def test_errors(self):
        session = self.engine.session()
        for kind, call in [
            (tiercel.Error, lambda: tiercel.Engine("/nowhere")),
            (tiercel.UsageError, lambda: self.engine.session(bugdet=1)),
            (tiercel.UsageError, lambda: self.engine.session(budget="a\0b")),
            (tiercel.UsageError, lambda: self.engine.detokenize([1 << 40])),
            (tiercel.UsageError, lambda: session.prefill([-1])),
            (tiercel.UsageError, lambda: session.prefill([])),
            (tiercel.StateError, lambda: session.step(1)),
            (tiercel.StateError, lambda: session.generate(1)),
            (tiercel.StateError, lambda: list(session.stream(1))),
            (tiercel.DoesNotFitError,
             lambda: self.engine.session(device_memory="1MiB").prefill(PROMPT)),
        ]:
            with self.assertRaises(kind):
                call()
        with self.assertRaisesRegex(ValueError, "expected bf16, int8 or int4, found 'int3'"):
            self.engine.session(value_codec="int3")
        session.close()
        session.close()
        with self.assertRaises(tiercel.StateError):
            session.prefill(PROMPT)

    def test_busy_and_threads(self):
        session = self.engine.session()
        session.prefill(PROMPT)

        def call_back(piece):
            with self.assertRaises(tiercel.BusyError):
                session.step(1)
            return True

        alone = session.generate(4, call_back).tokens
        answers = [None] * 4

        def work(i):
            mine = self.engine.session()
            mine.prefill(PROMPT)
            answers[i] = mine.generate(4).tokens

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(answers, [alone] * 4)

    def test_save_and_restore(self):
        session = self.engine.session(budget=128)
        session.prefill(PROMPT)
        session.generate(2)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "a")
            self.assertTrue(session.save(path))
            self.assertFalse(session.save(path, progress=lambda p: False))
            with self.assertRaises(ZeroDivisionError):
                session.save(path, progress=lambda p: 1 / 0)
            seen = []
            copy = self.engine.restore(path, progress=lambda p: seen.append(p) or True)
            self.assertEqual(copy.tokens, session.tokens)
            self.assertEqual(seen[-1].total, len(session.tokens))
            self.assertEqual(seen[-1].cached, seen[-1].processed)
            self.assertEqual(copy.generate(5), session.generate(5))
            self.assertIsNone(self.engine.restore(path, progress=lambda p: False))
            with self.assertRaises(ZeroDivisionError):
                self.engine.restore(path, progress=lambda p: 1 / 0)
            with self.assertRaises(tiercel.UsageError):
                self.engine.restore(path, key_codec="int4")
            with self.assertRaises(tiercel.Error):
                self.engine.restore(os.path.join(folder, "b"))
        copy.set_budget(32)
        with self.assertRaises(tiercel.UsageError):
            copy.set_budget(129)

    def test_log(self):
        lines = []
        self.engine.set_log(lambda level, line: lines.append((level, line)))
        self.engine.session().prefill(PROMPT)
        self.assertEqual([level for level, _ in lines], [logging.INFO])
        self.assertIn("prefill: context of ", lines[0][1])
        self.engine.set_log(None)
        self.engine.session().prefill(PROMPT)
        self.assertEqual(len(lines), 1)
        other = tiercel.Engine(MODEL)
        other.set_log(lambda level, line: lines.append((level, line)))
        session = other.session()
        del other  # the session lives on, and is silent
        gc.collect()
        session.prefill(PROMPT)
        self.assertEqual(len(lines), 1)

    def test_warnings_are_logged_as_such(self):
        adjusted = {"key_codec": "lowrank", "rank": 4000}
        lines = []
        for level in (logging.DEBUG, logging.WARNING, logging.ERROR):
            self.engine.set_log(lambda of, line: lines.append((of, line)), level)
            self.engine.session(**adjusted).prefill(PROMPT)
        self.engine.set_log(None)
        info, warning, again = lines
        self.assertEqual([info[0], warning[0]], [logging.INFO, logging.WARNING])
        self.assertIn("--rank 4000", warning[1])
        self.assertEqual(again, warning)
        self.assertEqual(self.engine.describe_plan(100, "notes", **adjusted), warning[1] + "\n")

    def test_a_log_callback_may_end_its_engine(self):
        engines = [tiercel.Engine(MODEL, backend="cpu", threads=2)]
        session = engines[0].session()
        lines = []

        def last(level, line):
            lines.append(line)
            with self.assertRaises(tiercel.BusyError):
                engines[0].set_log(None)
            engines.pop()  # the last reference

        engines[0].set_log(last)
        session.prefill(PROMPT)
        session.reset()
        gc.collect()
        session.prefill(PROMPT)
        self.assertEqual((len(lines), engines), (1, []))
        self.assertEqual(len(_engine._kept), 1)  # what was running is not freed

    def test_closed_engines(self):
        with tiercel.Engine(MODEL, backend="cpu", threads=2) as engine:
            lines = []
            engine.set_log(lambda level, line: lines.append(line))
            session = engine.session()
            batch = engine.batch(max_prompt=1000, n_predict=4)
            told = len(lines)  # of the batch's plan
        engine.close()
        for call in (
            lambda: engine.session(),
            lambda: engine.batch(max_prompt=10),
            lambda: engine.tokenize("a"),
            lambda: engine.plan(10),
            lambda: engine.info(),
            lambda: engine.end_tokens,
            lambda: engine.set_log(None),
            lambda: engine.restore("/nowhere"),
        ):
            with self.assertRaises(tiercel.StateError):
                call()
        # What it opened lives on, in silence.
        self.assertTrue(session.prefill(PROMPT))
        self.assertEqual(session.generate(4), batch.submit(PROMPT).wait())
        batch.close()
        self.assertEqual(len(lines), told)

    def test_an_engine_is_closed_behind_the_calls_that_run(self):
        engine = tiercel.Engine(MODEL, backend="cpu", threads=2)
        session = engine.session()
        session.prefill(PROMPT)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "a")
            session.save(path)
            copy = engine.restore(path, progress=lambda p: engine.close() or True)
        with self.assertRaises(tiercel.StateError):
            engine.info()
        self.assertEqual(copy.generate(4), session.generate(4))

    def test_chat_needs_a_template(self):
        with self.assertRaisesRegex(tiercel.UsageError, "chat template"):
            self.engine.tokenize_chat([{"role": "user", "content": "hi"}])
        with self.assertRaisesRegex(tiercel.UsageError, "role"):
            self.engine.tokenize_chat([{"role": "cook", "content": "hi"}])
        with self.assertRaisesRegex(tiercel.UsageError, "chat template"):
            self.engine.tokenize_next_turn([1], "hi")
        tool = {"type": "function", "function": {"name": "f"}}
        with self.assertRaisesRegex(tiercel.UsageError, "chat template"):
            self.engine.tokenize_chat([{"role": "user", "content": "hi"}], tools=[tool])
        with self.assertRaisesRegex(tiercel.UsageError, "messages.0.*role"):
            self.engine.tokenize_chat([{"role": "cook", "content": "hi"}], enable_thinking=False)
        with self.assertRaisesRegex(tiercel.UsageError, "chat template"):
            self.engine.read_answer([1], [2], tools=[tool])
        # What is no text is for the library to refuse, or to take: half a surrogate pair, parts, a call given a dict.
        for message, why in (({"role": "user", "content": "\ud800"}, "chat template"),
                             ({"role": "user", "content": "a\0b"}, "chat template"),
                             ({"role": "user", "content": [{"type": "text", "text": "hi"}]}, "chat template"),
                             ({"role": "user", "content": None}, "messages.0.*content"),
                             ({"role": "user", "content": 3}, "messages.0.*content"),
                             ("hi", "messages.0"),
                             ({"role": "assistant", "tool_calls": [
                                 {"function": {"name": "f", "arguments": {"a": "é"}}}]}, "chat template"),
                             ({"role": "assistant", "tool_calls": [3]}, "tool_calls")):
            with self.assertRaisesRegex(tiercel.UsageError, why):
                self.engine.tokenize_chat([message])
        answer = self.engine.tokenize("<think>\nWell.\n</think>\n\nYes.", no_bos=True)
        self.assertEqual(self.engine.read_answer([1], answer),
                         {"role": "assistant", "content": "Yes.", "reasoning_content": "Well."})
        self.assertRaises(tiercel.UsageError, self.engine.read_answer, [1], [10**6])

    def test_numbers_are_not_cut(self):
        with self.engine.session(budget=128) as session:
            session.prefill(PROMPT)
            for wrong in (2**64 + 3, -(2**63) - 1, 1.5, "3"):
                self.assertRaises(tiercel.UsageError, session.generate, wrong)
                self.assertRaises(tiercel.UsageError, session.set_budget, wrong)
                self.assertRaises(tiercel.UsageError, self.engine.plan, wrong)
            self.assertRaises(tiercel.UsageError, self.engine.plan, 2**62)
        with self.engine.session() as session:
            self.assertRaises(tiercel.UsageError, session.prefill, b"The key")

    def test_a_callback_that_returns_nothing_goes_on(self):
        heard = []
        with self.engine.session() as session:
            self.assertTrue(session.prefill(PROMPT, lambda p: heard.append(p)))
            self.assertEqual(len(session.generate(5, lambda p: heard.append(p)).tokens), 5)
            self.assertEqual(len(session.generate(5, lambda p: 0).tokens), 1)
        with self.engine.batch(max_prompt=500) as batch:
            said = batch.submit(PROMPT, 4, lambda p: heard.append(p.token), ignore_eos=True).wait()
            self.assertEqual(heard[-4:], said.tokens)

    def test_batches_that_nobody_has_are_closed(self):
        def left(callback):
            batch = self.engine.batch(max_prompt=50)
            request = batch.submit("a", 2, callback(batch))
            try:
                request.wait()
            except ZeroDivisionError:
                pass
            return weakref.ref(batch)

        for callback in (lambda batch: lambda p: 1 / 0, lambda batch: lambda p: batch is not None):
            batch = left(callback)
            gc.collect()
            self.assertIsNone(batch())

    def test_logits_are_whole_whatever_others_do(self):
        session = self.engine.session()
        session.prefill(PROMPT)
        ids = self.engine.tokenize(PROMPT)[:6]
        known = set()
        for token in ids:
            known.add(bytes(session.logits()))
            session.step(token)
        known.add(bytes(session.logits()))
        found, done = [], threading.Event()

        def read():
            while not done.is_set():
                try:
                    found.append(bytes(session.logits()))
                except (tiercel.BusyError, tiercel.StateError):
                    pass

        reader = threading.Thread(target=read)
        reader.start()
        for _ in range(20):
            try:
                session.rewind()
                for token in ids:
                    session.step(token)
            except tiercel.BusyError:
                pass
        session.close()
        done.set()
        reader.join()
        self.assertLessEqual(set(found) - known, set())

    def test_handles_are_not_copied(self):
        for mine in (self.engine, self.engine.session()):
            for copies in (copy.copy, copy.deepcopy, pickle.dumps):
                self.assertRaises(TypeError, copies, mine)
        with self.engine.batch(max_prompt=64, n_predict=8) as batch:
            request = batch.submit("The", 2)
            for owner in (batch, request):
                self.assertRaises(TypeError, copy.copy, owner)
            requests = [batch.submit("The", 2) for _ in range(40)]
            for one in [request] + requests:
                self.assertEqual(len(one.wait().tokens), 2)

    def test_append_and_fork(self):
        session = self.engine.session(budget=128, n_predict=100)
        session.prefill(PROMPT)
        more = self.engine.tokenize(" and more of it", no_bos=True)
        fork = session.fork()
        self.assertTrue(session.append(" and more of it"))
        for token in more:
            fork.step(token)
        self.assertEqual(session.tokens, fork.tokens)
        self.assertEqual(session.generate(5), fork.generate(5))
        self.assertFalse(fork.append(more * 10, progress=lambda p: p.processed < p.total // 2))
        with self.assertRaises(ZeroDivisionError):
            session.append(more, progress=lambda p: 1 / 0)
        with self.assertRaises(tiercel.UsageError):
            session.append([1 << 30])

    def test_options_versions_plans(self):
        options = tiercel.options()
        self.assertEqual(options["parallel"].type, "N")
        self.assertEqual(options["value_codec"].initial, "bf16")
        self.assertTrue(all(option.type and option.help for option in options.values()))
        for name, option in options.items():
            if option.initial:  # which is a legal value
                with _abi.OptionHandle({name: option.initial}):
                    pass
        self.assertRegex(tiercel.version(), r"^\d+\.\d+\.\d+$")
        self.assertTrue(tiercel.commit())

    def test_plans_in_numbers_and_words(self):
        plan = self.engine.plan(100000)
        self.assertGreater(plan["resident"], self.engine.plan(1000)["resident"])
        self.assertGreaterEqual(plan["context"], 100000)
        parts = "weights keys values landmarks slots exact activations"
        self.assertEqual(sum(plan[part] for part in parts.split()), plan["device_total"])
        self.assertTrue(all(isinstance(value, int) for value in plan.values()))
        self.assertEqual(plan["weights"], self.engine.info()["weight_bytes"])
        session = self.engine.session(attention="quest")
        self.assertEqual(session.describe("composition"), "")
        session.prefill(PROMPT)
        self.assertEqual(session.describe("notes"), "")
        self.assertIn("minmax", session.describe("composition"))
        self.assertEqual(self.engine.describe_plan(100, "composition", attention="quest"),
                         session.describe("composition"))
        self.assertLessEqual(plan.keys(), session.stats().keys())
        with self.engine.batch(max_prompt=100, attention="quest") as batch:
            self.assertEqual(batch.describe("composition"), session.describe("composition"))
            self.assertEqual(batch.describe("notes"), "")
            self.assertLessEqual(plan.keys(), batch.stats().keys())
            for describe in (session.describe, batch.describe,
                             lambda what: self.engine.describe_plan(100, what)):
                with self.assertRaisesRegex(tiercel.UsageError, "composition, notes"):
                    describe("song")
        with self.assertRaises(tiercel.StateError):
            batch.describe("notes")

    def test_the_model(self):
        self.assertEqual(
            set(self.engine.info()),
            {"layers", "vocab_size", "max_positions", "parameters", "weight_bytes", "bos_token"},
        )
        (end,) = self.engine.end_tokens
        self.assertEqual(self.engine.detokenize([end]), "<|end_of_text|>")
        session = self.engine.session()
        self.assertEqual(session.n_tokens, 0)
        session.prefill(PROMPT)
        session.step(end)
        self.assertEqual(session.n_tokens, len(session.tokens))


class Batches(unittest.TestCase):
    OPTIONS = {"max_prompt": 1000, "n_predict": 16, "parallel": 3, "budget": 128}

    @classmethod
    def setUpClass(cls):
        cls.engine = tiercel.Engine(MODEL, backend="cpu", threads=2)
        session = cls.engine.session(budget=128)
        session.prefill(PROMPT)
        cls.alone = session.generate(8)

    def test_requests_get_what_a_session_says(self):
        with self.engine.batch(**self.OPTIONS) as batch:
            heard = []
            requests = [batch.submit(PROMPT, 8, lambda p: heard.append(p) or True)]
            requests += [batch.submit(self.engine.tokenize(PROMPT), 8) for _ in range(4)]
            for request in requests:
                self.assertEqual(request.wait(), self.alone)
                self.assertEqual(request.wait(timeout=0), self.alone)
                self.assertTrue(request.done)
                self.assertEqual(request.state, "finished")
                self.assertGreater(request.stats()["first_token_seconds"], 0)
            self.assertEqual([p.token for p in heard], self.alone.tokens)
            self.assertEqual("".join(p.text for p in heard), self.alone.text)
            self.assertEqual(batch.stats()["ended"], 5)
            self.assertGreater(batch.stats()["device_total"], 0)
            long = batch.submit(PROMPT, temp=0.7, seed=3, ignore_eos=True).wait()
            self.assertEqual(len(long.tokens), 16)
            told = batch.submit(PROMPT, 8, logprobs=2).wait()
            self.assertEqual(told[:3], self.alone[:3])
            session = self.engine.session(budget=128)
            session.prefill(PROMPT)
            for one, scored in zip(told.logprobs, session.score(told.tokens)):
                self.assertAlmostEqual(one.logprob, scored, places=3)
                self.assertEqual(one.top[0][1], one.logprob)  # greedy
                self.assertLess(one.top[1][1], one.logprob)
            self.assertEqual(len(told.logprobs), 8)
            self.assertEqual(self.alone.logprobs, ())

    def test_questions_behind_a_prefix(self):
        end = PROMPT.rindex("What")
        with self.engine.batch(attention="dense", **self.OPTIONS) as batch:
            expected = batch.submit(PROMPT, 8).wait()
            before = batch.stats()["prompt_tokens"]
            book = batch.share(PROMPT[:end])
            self.assertEqual(len(book), len(self.engine.tokenize(PROMPT[:end])))
            requests = [batch.submit(PROMPT[end:], 8, prefix=book) for _ in range(3)]
            for request in requests:
                self.assertEqual(request.wait().text, expected.text)
                self.assertEqual(request.stats()["prefix_tokens"], len(book))
            behind = requests[0].stats()["prompt_tokens"] - len(book)
            self.assertEqual(batch.stats()["prompt_tokens"] - before, len(book) + 3 * behind)
            same = batch.share(self.engine.tokenize(PROMPT[:end]))
            self.assertEqual(len(same), len(book))
            self.assertRaises(TypeError, batch.share, [1, 2], no_bos=True)
            self.assertRaises(TypeError, copy.copy, book)
            self.assertRaises(tiercel.UsageError, batch.share, "", no_bos=True)
        self.assertRaises(tiercel.StateError, batch.submit, "x", prefix=book)

    def test_callbacks_in_the_batchs_thread(self):
        with self.engine.batch(**self.OPTIONS) as batch:
            more = []

            def listen(piece):
                more.append(batch.submit(PROMPT, 8))
                with self.assertRaises(tiercel.BusyError):
                    more[0].wait()
                return False

            first = batch.submit(PROMPT, 8, listen)
            self.assertEqual(first.wait()[:3], (self.alone.tokens[:1], first.wait().text, "stopped"))
            self.assertEqual(more[0].wait(), self.alone)
            raising = batch.submit(PROMPT, 8, lambda p: 1 / 0)
            with self.assertRaises(ZeroDivisionError):
                raising.wait()
            # Nobody keeps the request, but its callback.
            done = threading.Event()
            batch.submit(PROMPT, 1, lambda p: done.set() or True)
            self.assertTrue(done.wait(60))

    def test_cancel_and_close(self):
        batch = self.engine.batch(**dict(self.OPTIONS, n_predict=20000))
        running = batch.submit(PROMPT, ignore_eos=True)
        queued = [batch.submit(PROMPT, ignore_eos=True) for _ in range(4)]
        with self.assertRaises(TimeoutError):
            running.wait(timeout=0.01)
        queued[-1].cancel()
        self.assertEqual(queued[-1].wait().reason, "stopped")
        batch.close()
        batch.close()
        self.assertEqual({request.wait().reason for request in queued + [running]}, {"stopped"})
        for call in (lambda: batch.submit(PROMPT), batch.stats):
            with self.assertRaises(tiercel.StateError):
                call()

    def test_errors(self):
        with self.assertRaisesRegex(tiercel.UsageError, "max-prompt"):
            self.engine.batch()
        with self.engine.batch(**self.OPTIONS) as batch:
            for options in ({"budget": 64}, {"n": 0}, {"threads": 2}):
                with self.assertRaises(tiercel.UsageError):
                    batch.submit(PROMPT, **options)
            for prompt in ("x" * 20000, [], [-1], [1 << 20]):
                with self.assertRaises(tiercel.UsageError):
                    batch.submit(prompt)
            self.assertEqual(batch.submit(PROMPT, 8).wait(), self.alone)

    def test_a_program_may_end_with_work_in_flight(self):
        script = (
            "import os, tiercel\n"
            "engine = tiercel.Engine(os.environ['TIERCEL_MODEL'], backend='cpu', threads=2)\n"
            "batch = engine.batch(max_prompt=100, n_predict=50000)\n"
            "batch.submit('Once', callback=lambda p: True, ignore_eos=True)\n"
            "lost = engine.batch(max_prompt=100, n_predict=50000)\n"
            "lost.submit('Once', callback=lambda p: True, ignore_eos=True)\n"
            "del lost\n"
        )
        result = subprocess.run([sys.executable, "-B", "-c", script], timeout=60,
                                capture_output=True, text=True, check=False)
        self.assertEqual((result.returncode, result.stderr), (0, ""))


MANY = 14000  # tokens that no machine computes before a signal comes


class Signals(unittest.TestCase):
    """What handlers raise while C computes, Ctrl-C above all, is neither lost nor late."""

    @classmethod
    def setUpClass(cls):
        cls.engine = tiercel.Engine(MODEL, backend="cpu", threads=2)
        cls.prompt = cls.engine.tokenize(PROMPT)
        cls.long = cls.prompt * 400
        cls.options = {"budget": 128, "n_predict": MANY, "ignore_eos": True}

    def setUp(self):
        # A program in a shell's background ignores it.
        self.addCleanup(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT))
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def prefilled(self):
        session = self.engine.session(**self.options)
        session.prefill(self.prompt)
        return session

    @staticmethod
    def send(number=signal.SIGINT, after=0.2):
        threading.Timer(after, os.kill, (os.getpid(), number)).start()

    def assert_interrupted(self, call):
        """By Ctrl-C, sent while it runs."""
        self.send()
        with self.assertRaises(KeyboardInterrupt):
            call()

    def test_ctrl_c_stops_a_prompt(self):
        session = self.engine.session(**self.options)
        text = self.engine.detokenize(self.long)
        for call in (session.prefill, session.score):
            self.assert_interrupted(lambda: call(self.long))
            self.assertEqual(session.tokens, [])
        self.assert_interrupted(lambda: session.prefill(text))
        self.assertEqual(session.tokens, [])
        self.assertTrue(session.prefill(self.prompt))

    def test_ctrl_c_stops_what_comes_behind_a_prompt(self):
        expected = self.prompt + self.prefilled().generate(600).tokens
        session = self.prefilled()
        self.assert_interrupted(lambda: session.generate(MANY))
        n = session.n_tokens
        self.assertTrue(len(self.prompt) < n < len(self.prompt) + MANY, n)
        self.assertEqual(session.finish_reason, "stopped")
        session.generate(5)  # from there on
        self.assertEqual(session.n_tokens, n + 5)
        both = min(n + 5, len(expected))
        self.assertEqual(session.tokens[:both], expected[:both])

        session = self.prefilled()
        self.assert_interrupted(lambda: list(session.stream(MANY)))
        n = session.n_tokens
        self.assertTrue(n < len(self.prompt) + MANY, n)
        for call in (session.append, session.score):
            n = session.n_tokens
            more = self.long[:MANY - (n - len(self.prompt))]
            self.assert_interrupted(lambda: call(more))
            self.assertTrue(n < session.n_tokens < n + len(more), session.n_tokens)
            self.assertEqual(session.tokens[n:], more[: session.n_tokens - n])

    def test_ctrl_c_stops_files_and_requests(self):
        session = self.engine.session(**self.options)
        session.prefill(self.long[:20000])
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "a")

            def again(call):  # as one of them is short
                for _ in range(1000):
                    self.assertTrue(call())

            for _ in range(5):
                self.assert_interrupted(lambda: again(lambda: session.save(path)))
            self.assertEqual(os.listdir(folder), ["a"])
            for _ in range(5):
                self.assert_interrupted(lambda: again(lambda: self.engine.restore(path)))
            self.assertEqual(self.engine.restore(path).tokens, session.tokens)
        with self.engine.batch(max_prompt=1000, **self.options) as batch:
            heard = []
            request = batch.submit(self.prompt, MANY, lambda p: heard.append(p.token) or True)
            self.assert_interrupted(request.wait)
            request.cancel()
            self.assertEqual(request.wait().tokens, heard)

    def test_no_signal_is_lost_wherever_it_comes(self):
        expected = self.prompt + self.prefilled().generate(400).tokens
        session = self.prefilled()
        rng = random.Random(1)
        for _ in range(50):
            if session.n_tokens + 40 > len(expected):
                session = self.prefilled()
            before = session.n_tokens
            with self.assertRaises(KeyboardInterrupt):
                self.send(after=rng.uniform(0, 0.03))
                session.generate(20)
                session.generate(20, lambda piece: True)
                time.sleep(20)  # it comes behind them
            self.assertLessEqual(before, session.n_tokens)
            self.assertEqual(session.tokens, expected[: session.n_tokens])
        self.assertIs(signal.getsignal(signal.SIGINT), signal.default_int_handler)

    def test_calls_in_callbacks(self):
        session, inner = self.prefilled(), self.prefilled()
        self.assert_interrupted(lambda: session.generate(MANY, lambda p: inner.generate(MANY)))
        self.assertEqual(session.n_tokens, len(self.prompt) + 1)
        self.assertLess(inner.n_tokens, len(self.prompt) + MANY)
        start = time.monotonic()
        self.assert_interrupted(lambda: session.generate(9, lambda p: time.sleep(60)))
        self.assertLess(time.monotonic() - start, 30)
        self.assertIs(signal.getsignal(signal.SIGINT), signal.default_int_handler)

    def test_handlers_of_programs(self):
        class Late(Exception):
            pass

        def raise_late(number, frame):
            raise Late

        seen = []
        quiet = lambda number, frame: seen.append(session.finish_reason)  # noqa: E731
        session = self.prefilled()
        self.addCleanup(signal.signal, signal.SIGALRM,
                        signal.signal(signal.SIGALRM, raise_late))
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with self.assertRaises(Late):
            session.generate(MANY)
        self.assertIs(signal.getsignal(signal.SIGALRM), raise_late)

        # One that raises nothing stops nothing, and is not put off until the end.
        signal.signal(signal.SIGINT, quiet)
        session = self.prefilled()
        self.send(after=0)
        self.assertEqual(session.generate(200, lambda p: not seen).reason, "stopped")
        self.assertEqual(seen, [None])
        self.assertIs(signal.getsignal(signal.SIGINT), quiet)
        # What a callback sets stays.
        session.generate(1, lambda p: signal.signal(signal.SIGINT, signal.SIG_IGN) and True)
        self.assertIs(signal.getsignal(signal.SIGINT), signal.SIG_IGN)

    def test_calls_in_other_threads_go_on(self):
        session, results, done = self.prefilled(), [], threading.Event()

        def work():
            results.append(session.generate(300))
            done.set()

        threading.Thread(target=work).start()
        self.assert_interrupted(lambda: time.sleep(60))
        self.assertTrue(done.wait(60))
        self.assertEqual(len(results[0].tokens), 300)

    def test_a_session_closed_by_its_callback_ends_behind_the_call(self):
        session = self.prefilled()
        self.assertEqual(len(session.generate(5, lambda p: session.close() or True).tokens), 5)
        with self.assertRaises(tiercel.StateError):
            session.generate(1)


if __name__ == "__main__":
    unittest.main()
