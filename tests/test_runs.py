"""The recorded runs: what makes them, what ships of them, and that both agree."""

import json
import math
import random
import time
from dataclasses import asdict

import ablations
import gpu_run
import numpy as np
import pytest
import torch

from gpt2lib.gpt import GPT, GPTConfig
from gpt2lib.ledger import FORMULAS, baseline_losses, flops_per_token, mfu, peak_flops, read_ledger, xz_loss
from gpt2lib.train import TrainConfig, check_memory, memory_needed

TINY = ablations.RECIPE | dict(
    n_layer=2, n_head=2, n_embd=16, block_size=12, batch_size=3, max_lr=0.2, min_lr=0.02, warmup_steps=4, max_steps=12,
    eval_interval=6, eval_tokens=240,
)  # fmt: skip


def lines_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_ledger(folder, *rates: int, name: str = "NVIDIA H100 80GB HBM3", end: str = "") -> None:
    header = dict(
        kind="header",
        step=0,
        tokens_per_step=100,
        world_size=2,
        device={"name": name},
        model=asdict(GPTConfig()),
    )
    steps = [
        dict(kind="step", step=n, loss=2.0, lr=0.1, grad_norm=1.0, tokens_per_second=r)
        for n, r in enumerate(rates)
    ]
    text = "".join(json.dumps(line) + "\n" for line in (header, *steps))
    (folder / "ledger.jsonl").write_text(text + end)


def test_a_record_is_what_its_lines_add_up_to(tmp_path):
    write_ledger(tmp_path, 50, 200, end='{"kind": "step", "st')  # a line that is being written
    record = read_ledger(tmp_path)
    assert (record.tokens, record.seconds, record.tokens_per_second) == (200, 2.5, 80.0)
    assert mfu(record) == pytest.approx(803_261_952 * 80 / 2 / 989e12)
    assert mfu(record, "nanoGPT") == pytest.approx(855_166_464 * 80 / 2 / 312e12)
    for end in ('{"kind": "step", "step": 1}\n', '{"kind": "step", "step": 0}\n', "{\n", "5\n"):
        write_ledger(tmp_path, 50, 200, end=end)
        with pytest.raises(ValueError, match="step [01] twice|line 4 is damaged"):
            read_ledger(tmp_path)


def test_floating_point_operations_and_peaks_are_those_of_the_three_formulas():
    found = [flops_per_token(GPTConfig(), formula) for formula in FORMULAS]
    assert found == [855_166_464, 803_261_952, 855_166_464]
    peaks = {"NVIDIA H100 PCIe": 756e12, "NVIDIA H100 NVL": 835e12, "NVIDIA H100 80GB HBM3": 989e12, "Tesla T4": 65e12,
             "NVIDIA L40S": 362e12, "NVIDIA L4": 121e12, "NVIDIA A100-SXM4-40GB": 312e12, "AMD EPYC": None}  # fmt: skip
    assert {name: peak_flops(name) for name in peaks} == peaks
    assert peak_flops("AMD EPYC", "torchtitan") == peak_flops("Tesla T4", "nanoGPT") == 312e12


def test_the_baselines_are_those_that_one_counts_by_hand():
    train, held_out = np.array([0, 1, 0, 1, 2]), np.array([0, 1, 2])
    found = baseline_losses(train, held_out, 3)
    unigram = [3 / 8, 3 / 8, 2 / 8]  # each counted once more than it is there
    assert found["uniform"] == pytest.approx(math.log(3))
    assert found["unigram"] == pytest.approx(-(math.log(unigram[1]) + math.log(unigram[2])) / 2)
    both = [
        (2 + w * unigram[1]) / (2 + w) * (1 + w * unigram[2]) / (2 + w)
        for w in (1, 3, 10, 30, 100, 300, 1000)
    ]
    assert found["bigram"] == pytest.approx(-math.log(max(both)) / 2)
    text = "".join(random.Random(0).choices("abcdefgh", k=4000))  # 3 bits a letter
    assert 3 < xz_loss(text, 4000) / math.log(2) < 3.6 and xz_loss(text, 4000, given=text) < 0.1


def test_a_norm_that_overflowed_is_nan_in_the_record(tmp_path):
    """In float16 a step whose gradient overflows is left out, and JSON has no infinity."""
    lines = [dict(kind="header", step=0)]
    lines += [dict(kind="step", step=n, loss=2.0, grad_norm=norm) for n, norm in enumerate((None, 1.5))]
    (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    norms = read_ledger(tmp_path).steps["grad_norm"]
    assert norms.dtype == float and math.isnan(norms[0]) and norms[1] == 1.5


def test_every_variant_is_trained_and_none_twice(tmp_path, monkeypatch):
    ablations.record(tmp_path, TINY, seeds=(5,))
    monkeypatch.setattr(ablations, "run_one", None)  # calling it would fail
    ablations.record(tmp_path, TINY, seeds=(5,))
    runs = json.loads(ablations.collect(tmp_path, TINY, seeds=(5,)))["runs"]
    assert [run["variant"] for run in runs] == list(ablations.VARIANTS)
    assert all(run["steps"] == [0, 6, 12] and run["diverged"] is None for run in runs)
    last = [run["losses"][-1] for run in runs]
    assert len(set(last)) == len(last), (
        f"an ingredient that changes nothing: {dict(zip(ablations.VARIANTS, last))}"
    )
    header, *lines = lines_of(ablations.file_of(tmp_path, "no clipping", 5))
    assert header["kind"] == "header" and header["config"]["grad_clip"] == 0
    assert [line["step"] for line in lines if line["kind"] == "step"] == [0, 10]


def test_a_run_that_diverges_is_recorded_as_that(tmp_path):
    path = tmp_path / "x.jsonl"
    ablations.run_one(path, "no warm-up", 5, TINY | {"max_lr": 1e30, "min_lr": 0.0})
    last = lines_of(path)[-1]
    assert last["kind"] == "diverged" and last["step"] < TINY["max_steps"]


def test_ledgers_of_another_recipe_are_refused(tmp_path):
    path = ablations.file_of(tmp_path, "full recipe", 5)
    ablations.run_one(path, "full recipe", 5, TINY | {"max_steps": 2, "warmup_steps": 0, "eval_interval": 0})
    with pytest.raises(SystemExit, match="warmup_steps is 0, not 4; delete the file"):
        ablations.collect(tmp_path, TINY, seeds=(5,))


def test_the_shipped_evaluations_are_those_of_the_ledgers():
    assert ablations.collect(ablations.LEDGERS, ablations.RECIPE) == ablations.ASSET.read_text(
        encoding="utf-8"
    )


def test_variants_differ_from_the_model_in_one_thing():
    config = GPTConfig(block_size=7, vocab_size=50, n_layer=3, n_head=2, n_embd=12)
    idx = torch.randint(50, (4, 7))

    def build(kind):
        torch.manual_seed(0)
        return kind(config)

    plain = build(GPT)
    unscaled, untied, post = map(build, (ablations.UnscaledGPT, ablations.UntiedGPT, ablations.PostNormGPT))
    for name, weight in plain.named_parameters():
        factor = math.sqrt(2 * config.n_layer) if name.endswith("c_proj.weight") else 1.0
        torch.testing.assert_close(unscaled.get_parameter(name), factor * weight)
        if "ln_f" not in name:
            assert torch.equal(post.get_parameter(name), weight)
    assert torch.equal(untied(idx)[0], plain(idx)[0])  # until the first step
    assert sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in plain.parameters()) == 50 * 12
    with torch.no_grad():
        post.lm_head.weight.copy_(torch.eye(50, 12))  # the logits are then the residual stream
        stream = post(idx)[0][..., :12]  # (B, T, C)
    torch.testing.assert_close(stream.mean(-1), torch.zeros(4, 7), atol=1e-5, rtol=0)
    torch.testing.assert_close(stream.var(-1, correction=0), torch.ones(4, 7), atol=1e-2, rtol=0)


def test_gpu_run_is_rehearsed_in_segments(tmp_path, capsys):
    command = ["--rehearse", "--out", str(tmp_path)]
    gpu_run.main([*command, "--seconds", "0"])
    assert "not done yet: run the same command again" in capsys.readouterr().out
    assert len(read_ledger(tmp_path / "train").steps["step"]) == 1
    gpu_run.main(command)
    assert capsys.readouterr().out.endswith("all is done\n")
    record = read_ledger(tmp_path / "train")
    assert len(record.steps["step"]) == gpu_run.TINY["max_steps"] and len(record.samples["text"]) == 3
    rows = lines_of(tmp_path / "sweep.jsonl")
    assert [row["name"] for row in rows] == [row["name"] for row in gpu_run.sweep_rows(rehearse=True)]
    assert all(row["tokens_per_second"] > 0 for row in rows)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    operators = json.loads((tmp_path / "profile.json").read_text())["top"]
    calls = {row["name"]: row["calls"] for row in operators}
    assert calls["aten::native_layer_norm"] == 10  # two micro-batches through two blocks of two, and ln_f
    slowest = [f"`{row['name']}`" for row in operators[:15]]  # which ones these are depends on the machine
    for part in ("40 of 40", "batch of 4", "What it wrote after 40 steps", *slowest):
        assert part in text
    small = [p for p in tmp_path.rglob("*") if p.is_file() and "checkpoints" not in p.parts]
    assert sum(p.stat().st_size for p in small) < 10e6
    begin = time.monotonic()
    gpu_run.main(command)  # finds all done
    assert capsys.readouterr().out.endswith("all is done\n") and time.monotonic() - begin < 20


def test_gpu_run_records_what_does_not_fit(tmp_path, monkeypatch):
    def no_room(config, on_line):
        if config.batch_size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(config, on_line)

    real = gpu_run.train
    monkeypatch.setattr(gpu_run, "train", no_room)
    row = gpu_run.sweep_rows(rehearse=True)[-1]
    assert gpu_run.measure(gpu_run.TINY, row, 1, 2)["error"] == "out of memory"
    fields = gpu_run.TINY | {"out": str(tmp_path / "train"), "max_steps": 2}
    assert gpu_run.train_until(fields, tmp_path, math.inf)
    assert json.loads((tmp_path / "batch.json").read_text()) == {"batch_size": 2, "grad_accum_steps": 4}
    assert read_ledger(tmp_path / "train").header["tokens_per_step"] == 192  # as many as before


def test_gpu_run_knows_the_words_of_a_batch_that_does_not_fit():
    config = TrainConfig(**gpu_run.TINY)
    free = memory_needed(config.model, batch_size=2)
    with pytest.raises(ValueError) as refused:
        check_memory(config, config.model, torch.float32, free, least=1.0)
    assert gpu_run.does_not_fit(refused.value) and not gpu_run.does_not_fit(ValueError("another --out"))


def test_gpu_run_records_a_measurement_that_dies_or_hangs():
    assert "exit status 2" in gpu_run.in_a_process_of_its_own(["--row", "no JSON"], seconds=60)["error"]
    assert gpu_run.in_a_process_of_its_own(["--rehearse"], seconds=0.1)["error"] == "not done after 0 s"


def test_gpu_run_without_a_gpu_says_what_to_do():
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(SystemExit, match="add --rehearse"):
        gpu_run.main([])
