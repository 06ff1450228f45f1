#!/usr/bin/env python3
"""The whole engine on a device, beside what its bytes and FLOPs take.

    engine_bars.py TIERCEL --ceilings LOG [--shape NAME] [--scale N] [--limit SECONDS] [--only PART,...]

TIERCEL is the command. LOG is what bench_device printed: its lines "ceiling ..." are the bandwidths
and the matrix rate of the same device. Every measurement is one `tiercel bench --synthetic`, its floor
one `tiercel estimate --json`; one that fails costs only itself. --scale divides all lengths, to see
that everything runs where nothing is fast. What takes little time comes first, the table last; exit
status 1: something failed, or missed its bar.
"""

import argparse
import json
import re
import subprocess
import sys

# Layers, query heads, head_dim: of attention's FLOPs.
SHAPES = {"llama-3.1-8b": (32, 32, 128), "llama-3.2-1b": (16, 32, 64), "qwen2.5-0.5b": (24, 14, 64),
          "qwen3-30b-a3b-1m": (48, 32, 128)}
HOST = ["--value-home", "host"]  # what fits the device must not stay there
STEPS = 64


class Failed(Exception):
    """A measurement that did not come to an end; str() says why."""


def ceilings_of(log):
    """Bytes per second of copies and the link, FLOP/s of products."""
    found = {}
    for name, unit in (("copy", r"([\d.]+) GB/s"), ("link", r"([\d.]+) GB/s"), ("matmul", r"([\d.]+) TFLOP/s")):
        match = re.search(rf"^ceiling {name} .*?{unit}", log, re.MULTILINE)
        if not match:
            raise SystemExit(f"engine_bars.py: --ceilings: expected a line 'ceiling {name}', found none")
        found[name] = float(match.group(1)) * (1e12 if name == "matmul" else 1e9)
    return found


def kernels(row):
    """Of a row of bench -b."""
    return f"{row['kernels_per_step']} kernels, {row['replayed_steps']} steps replayed"


class Bars:
    def __init__(self, arguments, ceilings):
        self.arguments = arguments
        self.ceilings = ceilings
        self.rows = []
        self.failed = False

    def tokens(self, n):
        return max(n // self.arguments.scale, 64)

    def tiercel(self, command, *more):
        words = [self.arguments.tiercel, command, "--synthetic", self.arguments.shape, *map(str, more)]
        print("$", " ".join(words[1:]), flush=True)
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=self.arguments.limit, check=False)
        except subprocess.TimeoutExpired as error:
            raise Failed(f"longer than {self.arguments.limit} s") from error
        if done.returncode != 0:
            raise Failed(f"exit status {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
        return json.loads(done.stdout)

    def bench(self, *more):
        return self.tiercel("bench", "-o", "json", *more)

    def floor(self, n_prompt, *more):
        """Bytes of a step, whatever the memory."""
        estimate = self.tiercel("estimate", "--json", "--backend", "cuda", "--tokens", n_prompt, "-n", STEPS,
                                "--device-memory", "4TiB", "--host-memory", "4TiB",
                                "--device-bandwidth", self.ceilings["copy"] / 1e9,
                                "--link-bandwidth", self.ceilings["link"] / 1e9, *more)
        return estimate["floors"][-1 if "--behind" in more else 0]  # the last is of those that share

    def step_floor(self, n_prompt, hit_rate, *more, n=1):
        """Seconds: bytes of the device and of the link of a step of n sequences."""
        floor = self.floor(n_prompt, "--hit-rate", hit_rate, *more)
        # Of experts, those that so many sequences choose.
        missed = 1 - floor["expert_share"]
        more = missed ** floor["sequences"] - missed**n
        weights = floor["weight_bytes"] + floor["expert_bytes"] * more
        device = weights + floor["shared_bytes"] + n * floor["device_bytes_per_sequence"]
        link = floor["link_weight_bytes"] + floor["link_expert_bytes"] * more + n * floor["link_bytes_per_sequence"]
        return device / self.ceilings["copy"], link / self.ceilings["link"]

    def row(self, what, measured, bound="", result="", bar="", met=None):
        self.rows.append([what, measured, bound, result, bar, {None: "", True: "met", False: "NOT MET"}[met]])
        self.failed |= met is False
        print("->", *self.rows[-1], flush=True)

    def step_row(self, what, seconds, floor, most=None):
        over = seconds / max(floor)
        self.row(what, f"{1e3 * seconds:.2f} ms", f"{1e3 * max(floor):.2f} ms", f"{over:.2f} x",
                 f"{most} x" if most else "", over <= most if most else None)

    # ---- what is measured ----

    def prefill(self):
        layers, heads, head_dim = SHAPES[self.arguments.shape]
        for tokens in (self.tokens(32768), self.tokens(131072)):
            (row,) = self.bench("-p", tokens, "-n", 0, "-r", 1, "--attention", "dense", "--prefill", "dense")
            floor = self.floor(tokens, "--attention", "dense")
            # A product and a sum for every weight of 2 bytes, but for the head's: only the last token needs those.
            linear = 2 * (floor["weight_bytes"] - floor["head_bytes"]) / 2 * tokens
            attention = 2 * 2 * tokens * tokens / 2 * layers * heads * head_dim
            rate = (linear + attention) / (row["avg_ns"] * 1e-9)
            share = rate / self.ceilings["matmul"]
            self.row(f"dense prefill, {tokens} tokens", f"{row['avg_ns'] * 1e-9:.2f} s, {row['avg_ts']:.0f} tokens/s",
                     f"{self.ceilings['matmul'] * 1e-12:.0f} TFLOP/s", f"{100 * share:.0f} %", "55 %", share >= 0.55)

    def low_rank(self):
        """The basis and the coefficients of a prompt's keys, beside its prefill."""
        tokens = self.tokens(32768)
        (row,) = self.bench("-p", tokens, "-n", 0, "-r", 1, "--prefill", "dense", "--key-codec", "lowrank", *HOST)
        seconds, prefill = row["key_coding_seconds"] or 0, row["avg_ns"] * 1e-9
        self.row(f"low-rank keys of {tokens} tokens", f"{1e3 * seconds:.1f} ms", f"{prefill:.2f} s of prefill",
                 f"{100 * seconds / prefill:.1f} %", "3 %", 0 < seconds <= 0.03 * prefill)

    def decode(self):
        tokens = self.tokens(131072)
        variants = [("", 1, []), ("", 0.9, []), ("", 0.6, []), (", enqueued anew", 0.9, ["--no-graphs"]),
                    (", int8 landmarks", 0.9, ["--landmark-codec", "int8"]),
                    (", low-rank keys", 0.9, ["--key-codec", "lowrank"]),
                    (", exact keys", 0.9, ["--key-codec", "exact"])]
        for name, hit_rate, flags in variants:
            row = self.bench("-p", tokens, "-n", STEPS, "-r", 1, "--prefill", "select", "--imposed-hit-rate", hit_rate,
                             *HOST, *flags)[-1]
            floor = self.step_floor(tokens, hit_rate, *HOST, *[f for f in flags if f != "--no-graphs"])
            self.step_row(f"step behind {tokens}, hit rate {hit_rate}{name}", row["token_p50_seconds"], floor,
                          1.35 if not flags else None)
            if not flags and hit_rate == 0.9 and row["device_bytes_in_use"]:
                off = row["device_bytes_in_use"] / row["device_bytes"] - 1
                self.row("device memory in use", f"{row['device_bytes_in_use'] * 2**-30:.2f} GiB",
                         f"{row['device_bytes'] * 2**-30:.2f} GiB", f"{100 * off:+.1f} %", "3 %", abs(off) <= 0.03)
        row = self.bench("-p", tokens, "-n", STEPS, "-r", 1, "--attention", "dense", "--prefill", "select")[-1]
        self.step_row(f"dense step behind {tokens}", row["token_p50_seconds"],
                      self.step_floor(tokens, 1, "--attention", "dense"))

    def batch(self):
        """What eight sequences fetch beside what they compute: against the same with nothing to fetch."""
        tokens, n = self.tokens(131072), 8
        kept = [*HOST, "--key-codec", "int8"]  # a batch's plan might choose another codec than the floor's
        flags = ["-p", tokens, "-n", STEPS, "-b", n, "--prefill", "select", *kept]
        for parts in ("1", "2"):
            seconds = {}
            for hit_rate, more in ((1, []), (0.9, ["--no-graphs"]), (0.9, [])):
                (row,) = self.bench(*flags, "--imposed-hit-rate", hit_rate, "--micro-batches", parts, *more)
                if row["pl"] != n:
                    raise Failed(f"{row['pl']} sequences fit, not {n}")
                seconds[hit_rate] = row["token_p50_seconds"]
                floor = self.step_floor(tokens, hit_rate, *kept, n=n)
                self.step_row(f"step of {n} behind {tokens}, hit rate {hit_rate}, {parts} part(s), {kernels(row)}",
                              seconds[hit_rate], floor)
            hidden = 1 - (seconds[0.9] - seconds[1]) / floor[1]
            self.row(f"fetch hidden, {n} sequences, {parts} part(s)",
                     f"{1e3 * (seconds[0.9] - seconds[1]):.2f} ms more", f"{1e3 * floor[1]:.2f} ms of link",
                     f"{100 * hidden:.0f} %", "80 %", hidden >= 0.8)

    def behind(self):
        tokens = self.tokens(131072)
        flags = [*HOST, "--key-codec", "int8", "--behind", 64]
        rows = self.bench("-p", tokens, "-n", STEPS, "-b", "1,8,32", "--prefill", "select", "--imposed-hit-rate", 0.9,
                          *flags)
        for row in rows:
            n = row["pl"]
            floor = self.step_floor(tokens, 0.9, *flags, n=n)
            self.step_row(f"step of {n} behind one prefix of {tokens}, {kernels(row)}", row["token_p50_seconds"],
                          floor)

    def million(self):
        tokens = self.tokens(1000000)
        rows = self.bench("-p", tokens, "-n", 32, "-r", 1, "--prefill", "select", "--imposed-hit-rate", 0.9, *HOST)
        self.row(f"selected prefill, {tokens} tokens",
                 f"{rows[0]['avg_ns'] * 1e-9:.1f} s, {rows[0]['avg_ts']:.0f} tokens/s", "",
                 f"{rows[0]['device_bytes'] * 2**-30:.1f} + {rows[0]['host_bytes'] * 2**-30:.1f} GiB")
        self.step_row(f"step behind {tokens}, hit rate 0.9", rows[1]["token_p50_seconds"],
                      self.step_floor(tokens, 0.9, *HOST))

    def host_memory(self):
        """Weights and hidden states in host memory: a prompt should hide their way, a step cannot hide weights."""
        tokens = self.tokens(32768)
        flags = ["-p", tokens, "-n", STEPS, "-r", 1, "--prefill", "dense", "--imposed-hit-rate", 0.9, *HOST]
        on_device = None
        for more in (["--hidden-home", "device"], ["--hidden-home", "host"], ["--host-layers", "all"]):
            prompt, steps = self.bench(*flags, *more)
            seconds = prompt["avg_ns"] * 1e-9
            on_device = on_device or seconds
            self.step_row(f"step behind {tokens}, {' '.join(more)}", steps["token_p50_seconds"],
                          self.step_floor(tokens, 0.9, *HOST, *more))
            self.row(f"dense prefill, {tokens} tokens, {' '.join(more)}", f"{seconds:.2f} s", f"{on_device:.2f} s",
                     f"{seconds / on_device:.2f} x")

    def long_text(self):
        """A text behind a prompt, which is prefilled as the prompt was: its rate should be nearly the prompt's."""
        tokens, text = self.tokens(131072), max(self.tokens(8192), 256)
        spans = ["--dual-chunk", max(tokens // 4, 256), "--dual-chunk-local", max(tokens // 16, 64)]
        alone = None  # the prompt's rate, selected
        for name, more in (("selected", ["--prefill", "select", *HOST]),
                           ("selected, in place", ["--prefill", "select", "--value-home", "device", "--key-codec", "exact"]),
                           ("selected, dual chunk", ["--prefill", "select", *HOST, *spans]),
                           ("dense", ["--attention", "dense", "--prefill", "dense"]),
                           ("selected, weights on the host", ["--prefill", "select", *HOST, "--host-layers", "all"])):
            prompt, behind = self.bench("-p", tokens, "--behind", text, "-n", 0, "-r", 1, *more)
            self.row(f"{text} tokens behind {tokens}, {name}", f"{behind['avg_ts']:.0f} tokens/s",
                     f"{prompt['avg_ts']:.0f} tokens/s", f"{100 * behind['avg_ts'] / prompt['avg_ts']:.0f} %")
            alone = alone or prompt["avg_ts"]
        # Behind a prompt that is shared: what two more of them take.
        one, three = self.bench("-p", tokens, "--behind", text, "-b", "1,3", "-n", 1, "--prefill", "select", *HOST)
        rate = 2 * text / (three["t_pp"] - one["t_pp"])
        self.row(f"{text} tokens behind {tokens} that are shared", f"{rate:.0f} tokens/s", f"{alone:.0f} tokens/s",
                 f"{100 * rate / alone:.0f} %")

    def parts(self):
        return (self.decode, self.prefill, self.low_rank, self.million, self.behind, self.long_text, self.host_memory,
                self.batch)

    def all(self):
        for part in self.parts():
            if self.arguments.only and part.__name__ not in self.arguments.only:
                continue
            try:
                part()
            except Exception as error:  # pylint: disable=broad-exception-caught  # the others' numbers stay
                self.failed = True
                self.row(part.__name__, f"FAILED: {type(error).__name__}: {error}")
        print("\n| what | measured | bound | of it | bar | |\n|---|---|---|---|---|---|")
        for row in self.rows:
            print("|", " | ".join(row), "|")


def main():
    parser = argparse.ArgumentParser(description="The whole engine on a device, beside its bounds.")
    parser.add_argument("tiercel")
    parser.add_argument("--ceilings", required=True, help="what bench_device printed")
    parser.add_argument("--shape", default="llama-3.1-8b", choices=SHAPES)
    parser.add_argument("--scale", type=int, default=1, help="divides all lengths")
    parser.add_argument("--limit", type=int, default=240, help="seconds of one measurement")
    names = [part.__name__ for part in Bars(None, None).parts()]
    parser.add_argument("--only", type=lambda text: text.split(","), help=", ".join(names))
    arguments = parser.parse_args()
    for name in arguments.only or []:
        if name not in names:
            parser.error(f"--only: expected {', '.join(names)}; found '{name}'")
    with open(arguments.ceilings, encoding="utf-8", errors="replace") as log:
        bars = Bars(arguments, ceilings_of(log.read()))
    bars.all()
    return 1 if bars.failed else 0


if __name__ == "__main__":
    sys.exit(main())
