"""The Python module: what it adds to the C interface, and that nothing is lost on the way."""

import math
import gc
import logging
import os
import subprocess
import sys
import tempfile
import threading
import unittest

import tiercel

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

    def test_chat_needs_a_template(self):
        with self.assertRaisesRegex(tiercel.UsageError, "chat template"):
            self.engine.tokenize_chat([{"role": "user", "content": "hi"}])
        with self.assertRaisesRegex(tiercel.UsageError, "role"):
            self.engine.tokenize_chat([{"role": "cook", "content": "hi"}])
        with self.assertRaisesRegex(tiercel.UsageError, "chat template"):
            self.engine.tokenize_next_turn([1], "hi")

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
        self.assertIn("value_codec", tiercel.options())
        self.assertRegex(tiercel.version(), r"^\d+\.\d+\.\d+$")
        self.assertTrue(tiercel.commit())
        self.assertGreater(self.engine.plan(100000)["resident"], self.engine.plan(1000)["resident"])
        session = self.engine.session(attention="quest")
        session.prefill(PROMPT)
        self.assertIn("minmax", session.describe("composition"))

    def test_a_missing_library_is_explained(self):
        env = dict(os.environ, TIERCEL_LIBRARY="/nowhere/libtiercel.so")
        result = subprocess.run([sys.executable, "-B", "-c", "import tiercel"], env=env,
                                capture_output=True, text=True, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("/nowhere/libtiercel.so", result.stderr)
        self.assertIn("TIERCEL_LIBRARY", result.stderr)


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

    def test_callbacks_in_the_batchs_thread(self):
        with self.engine.batch(**self.OPTIONS) as batch:
            more = []

            def listen(piece):
                more.append(batch.submit(PROMPT, 8))
                with self.assertRaises(tiercel.BusyError):
                    more[0].wait()
                return False

            first = batch.submit(PROMPT, 8, listen)
            self.assertEqual(first.wait(), (self.alone.tokens[:1], first.wait().text, "stopped"))
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


if __name__ == "__main__":
    unittest.main()
