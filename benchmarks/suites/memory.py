"""Memory that serving takes on top of the weights, each time in a fresh process."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.contenders import CONTINUOUS, ENGINE, Spec
from benchmarks.figures import Figures
from benchmarks.report import Check, Limits
from benchmarks.suites.mixes import half_switched
from benchmarks.workload import equal

PROMPT, NEW = 192, 64


def run(bench: Bench) -> None:
    """32 rows of 256 tokens, 15M, float32: the peak above what was resident once the weights were."""
    model = bench.llama("15M")
    rows, prompt, new_tokens = bench.pick((32, PROMPT, NEW), (4, 12, 4))

    def peak(spec: Spec, seed: int) -> Figures:
        worker = bench.fresh_worker(spec, model)
        try:
            _, peak_mib = worker.run(equal(rows, prompt, new_tokens, model.vocab, seed, half_switched(model)))
        finally:
            worker.close()
        return {"peak_rss_mib": peak_mib, "over_weights_mib": peak_mib - worker.hello["loaded_rss_mib"]}

    specs = (ENGINE["float32"], CONTINUOUS["float32"].having(kv_tokens=rows * (prompt + new_tokens)))
    cell = bench.timed(
        f"{rows} rows x {prompt + new_tokens} tokens, fresh process",
        model.name,
        {spec.label: (lambda seed, spec=spec: peak(spec, seed)) for spec in specs},
    )
    kv_mib = model.kv_bytes(rows * (prompt + new_tokens), 4) / 2**20
    limits = Limits(round(kv_mib * 1.3 + 150, 1), round(kv_mib * 1.1 + 80, 1), "less")
    ours = ENGINE["float32"].label
    found = cell.result(ours).median.get("over_weights_mib")
    note = f"keys and values {kv_mib:.0f} MiB"
    bench.check(
        Check.of("RSS over weights, 32 rows x 256, 15M, MiB", found and round(found, 1), limits, ours=ours, note=note)
    )
