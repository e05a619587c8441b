"""Equal to `transformers`: on shapes that nobody chose, on GPT-2's own, and while both learn."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2lib import GPT, GPTConfig, generate, get_lr

CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # stored (in, out) by transformers


def pair(config: GPTConfig, seed: int, attention: str = "eager") -> tuple[GPT, GPT2LMHeadModel]:
    """Our model and theirs with the same random weights, biases and gains included."""
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.block_size,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            attn_implementation=attention,
        )
    )
    torch.manual_seed(seed)
    ours = GPT(config)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)  # no bias is 0, no gain is 1
        state = ours.state_dict()
        theirs.load_state_dict({k: v.t() if k.endswith(CONV1D) else v for k, v in state.items()})
    return ours, theirs


@st.composite
def configs(draw) -> GPTConfig:
    n_head = draw(st.integers(1, 4))
    return GPTConfig(
        block_size=draw(st.integers(2, 24)),
        vocab_size=draw(st.integers(3, 300)),
        n_layer=draw(st.integers(1, 4)),
        n_head=n_head,
        n_embd=n_head * draw(st.integers(1, 12)),
    )


def assert_equal_logits_loss_and_gradients(ours: GPT, theirs: GPT2LMHeadModel, x, y):
    logits = theirs(x).logits
    assert (ours(x)[0] - logits).abs().max() < 1e-4
    expected = F.cross_entropy(logits.flatten(0, 1), y.flatten())
    _, loss = ours(x, y)
    assert abs(loss.item() / expected.item() - 1) < 1e-4
    ours.zero_grad(), theirs.zero_grad()
    loss.backward()
    expected.backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        want = gradients[name].grad
        want = want.t() if name.endswith(CONV1D) else want
        assert (parameter.grad - want).norm() <= 1e-4 * want.norm() + 1e-6, name


def greedy(theirs: GPT2LMHeadModel, prompt: torch.Tensor, n: int) -> torch.Tensor:
    settings = dict(do_sample=False, eos_token_id=None, pad_token_id=0)
    return theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=n, **settings)


@settings(max_examples=25, deadline=None)
@given(configs(), st.integers(1, 4), st.sampled_from(["eager", "sdpa"]), st.data())
def test_logits_loss_and_every_gradient_equal_those_of_transformers(config, B, attention, data):
    T = data.draw(st.integers(2, config.block_size))
    ours, theirs = pair(config, data.draw(st.integers(0, 99)), attention)
    x, y = torch.randint(config.vocab_size, (B, T)), torch.randint(config.vocab_size, (B, T))
    assert_equal_logits_loss_and_gradients(ours, theirs, x, y)


@settings(max_examples=15, deadline=None)
@given(configs(), st.data())
def test_future_tokens_do_not_change_past_logits(config, data):
    torch.manual_seed(data.draw(st.integers(0, 99)))
    model = GPT(config)
    x = torch.randint(config.vocab_size, (2, config.block_size))
    t = data.draw(st.integers(1, config.block_size - 1))
    changed = x.clone()
    changed[:, t:] = torch.randint(config.vocab_size, (2, config.block_size - t))
    with torch.no_grad():
        assert torch.equal(model(x)[0][:, :t], model(changed)[0][:, :t])


@settings(max_examples=3, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(2, 12), st.integers(40, 300), st.integers(0, 99))
def test_greedy_continuation_equals_that_of_transformers(n_layer, n_head, D, vocab_size, seed):
    config = GPTConfig(210, vocab_size, n_layer, n_head, n_embd=4 * D * n_head)
    ours, theirs = pair(config, seed, ["eager", "sdpa"][seed % 2])
    prompt = torch.randint(vocab_size, (2, 7))
    want = greedy(theirs, prompt, 200)
    for use_cache in (True, False):
        assert torch.equal(generate(ours, prompt, 200, temperature=0, use_cache=use_cache), want)


@pytest.fixture(scope="module")
def full_size() -> tuple[GPT, GPT2LMHeadModel]:
    """The 124M shape, with random weights."""
    return pair(GPTConfig(), 0)


def test_124m_logits_loss_and_every_gradient_equal_those_of_transformers(full_size):
    ours, theirs = full_size
    assert sum(p.numel() for p in ours.parameters()) == 124_439_808
    torch.manual_seed(1)
    x, y = torch.randint(50257, (2, 24)), torch.randint(50257, (2, 24))
    for attention in ("eager", "sdpa"):
        theirs.set_attn_implementation(attention)
        assert theirs.config._attn_implementation == attention
        assert_equal_logits_loss_and_gradients(ours, theirs, x, y)
    changed = x.clone()
    changed[:, 17:] = torch.randint(50257, (2, 7))
    with torch.no_grad():
        assert torch.equal(ours(x)[0][:, :17], ours(changed)[0][:, :17]), "bit for bit"


def test_124m_greedy_continuation_equals_that_of_transformers(full_size):
    ours, theirs = full_size
    torch.manual_seed(2)
    prompt = torch.randint(50257, (1, 5))
    written = generate(ours, prompt, 200, temperature=0)
    for attention in ("eager", "sdpa"):
        theirs.set_attn_implementation(attention)
        assert torch.equal(written, greedy(theirs, prompt, 200)), attention


@pytest.mark.parametrize("name", ["gpt2-medium", "gpt2-large", "gpt2-xl"])
def test_larger_sizes_equal_those_of_transformers(name):
    config = GPTConfig.preset(name, n_layer=2, vocab_size=211, block_size=24)  # full width, all heads
    ours, theirs = pair(config, 4)
    x = torch.randint(211, (2, 19))
    with torch.no_grad():
        assert (ours(x)[0] - theirs(x).logits).abs().max() < 1e-4
    with torch.device("meta"):  # full depth: shapes without memory
        full = GPTConfig.preset(name)
        shape = dict(n_embd=full.n_embd, n_layer=full.n_layer, n_head=full.n_head)
        models = GPT(full), GPT2LMHeadModel(GPT2Config(**shape))
    count = {"gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200}[name]
    assert [sum(p.numel() for p in model.parameters()) for model in models] == [count, count]


def test_training_follows_transformers_with_torchs_adamw():
    ours, theirs = pair(GPTConfig(block_size=16, vocab_size=97, n_layer=3, n_head=5, n_embd=40), 5)
    optimizer = ours.configure_optimizers(weight_decay=0.1, learning_rate=3e-3, device_type="cpu")
    matrices = [p for p in theirs.parameters() if p.dim() >= 2]
    vectors = [p for p in theirs.parameters() if p.dim() < 2]
    groups = [dict(params=matrices, weight_decay=0.1), dict(params=vectors, weight_decay=0.0)]
    reference = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95), eps=1e-8)
    losses = []
    for step in range(20):
        rows = torch.randint(97, (6, 17))
        rows[:, 1::2] = rows[:, :-1:2]  # something to learn: every second token repeats the one before
        x, y = rows[:, :-1], rows[:, 1:]
        for each in (optimizer, reference):
            each.param_groups[0]["lr"] = each.param_groups[1]["lr"] = get_lr(step, 3e-3, max_steps=20)
            each.zero_grad()
        loss, expected = ours(x, y)[1], F.cross_entropy(theirs(x).logits.flatten(0, 1), y.flatten())
        assert abs(loss.item() - expected.item()) < 1e-4, step
        for each, model, value in ((optimizer, ours, loss), (reference, theirs, expected)):
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            each.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3, "it learns"


def test_the_head_is_the_token_embedding():
    def assert_tied(model: torch.nn.Module, count: int):
        assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()
        assert sum(p.numel() for p in model.parameters()) == count

    small = GPT(GPTConfig(block_size=8, vocab_size=30, n_layer=1, n_head=1, n_embd=4))
    count = sum(p.numel() for p in small.parameters())
    loaded = GPT(small.config)
    loaded.load_state_dict(small.state_dict())
    for model in (small.to(torch.float64).float(), loaded, torch.compile(small)):
        assert_tied(model, count)
    with torch.device("meta"):
        assert sum(p.numel() for p in GPT(GPTConfig()).parameters()) == 124_439_808


def test_first_weights_are_openais_and_predict_the_first_loss():
    torch.manual_seed(6)
    for V, C in ((1000, 64), (5000, 192), (50304, 128)):
        model = GPT(GPTConfig(block_size=96, vocab_size=V, n_layer=3, n_head=4, n_embd=C))
        t = model.transformer
        for weight, std in (
            (t.wte.weight, 0.02),
            (t.wpe.weight, 0.01),
            (t.h[1].attn.c_attn.weight, 0.02),
            (t.h[1].attn.c_proj.weight, 0.02 / math.sqrt(6)),
            (t.h[1].mlp.c_proj.weight, 0.02 / math.sqrt(6)),
        ):
            assert abs(weight.std().item() / std - 1) < 0.05
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2:  # biases, and the gains of LayerNorms
                assert (parameter == float("ln_" in name and name.endswith("weight"))).all(), name
        x, y = torch.randint(V, (6, 96)), torch.randint(V, (6, 96))
        predicted, error = math.log(V) + C * 0.02**2 / 2, math.sqrt(C * 0.02**2 / y.numel())
        with torch.no_grad():
            assert abs(model(x, y)[1].item() - predicted) < 4 * error


@settings(max_examples=10, deadline=None)
@given(configs(), st.integers(1, 3), st.data())
def test_what_look_shows_is_what_the_model_computes(config, B, data):
    model, _ = pair(config, data.draw(st.integers(0, 99)))
    x = torch.randint(config.vocab_size, (B, config.block_size))
    used = []  # what the fused kernel of each layer hands to c_proj
    hooks = [
        b.attn.c_proj.register_forward_pre_hook(lambda m, i: used.append(i[0])) for b in model.transformer.h
    ]
    with torch.no_grad():
        logits, _ = model(x)
    for hook in hooks:
        hook.remove()
    inside = model.train().look(x)
    assert model.training and torch.equal(inside["logits"], logits)
    with torch.no_grad():
        for layer, block in enumerate(model.transformer.h):
            before, after = inside["residual"][layer], inside["residual"][layer + 1]
            v = block.attn._heads(block.ln_1(before))[2]  # (B, H, T, D)
            averaged = (inside["attention"][layer] @ v).transpose(1, 2).flatten(2)  # (B, T, C)
            assert (averaged - used[layer]).abs().max() < 1e-6 * max(1, v.abs().max().item())
            middle = before + block.attn.c_proj(averaged)  # (B, T, C)
            assert torch.allclose(middle + block.mlp.c_proj(inside["mlp"][layer]), after, atol=1e-4)


def test_dropout_acts_in_four_places_while_the_model_trains_and_nowhere_else():
    shape = dict(block_size=8, vocab_size=30, n_layer=2, n_head=2, n_embd=12)
    model, x = GPT(GPTConfig(**shape)), torch.randint(30, (3, 8))
    block, expected = model.transformer.h[1], model(x)[0]
    places = [(part, "p") for part in (model.transformer.drop, block.attn.resid_dropout, block.mlp.dropout)]
    for part, name in [*places, (block.attn, "dropout")]:
        setattr(part, name, 0.5)
        assert not torch.equal(model.train()(x)[0], expected), part
        assert torch.equal(model.eval()(x)[0], expected), part
        setattr(part, name, 0.0)
    assert torch.equal(model.train()(x)[0], expected)
    model = GPT(GPTConfig(**shape, dropout=0.25))
    rates = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    assert rates + [block.attn.dropout for block in model.transformer.h] == [0.25] * 7


def test_the_loss_is_never_computed_in_16_bits():
    model = GPT(GPTConfig(block_size=16, vocab_size=500, n_layer=1, n_head=2, n_embd=32)).bfloat16()
    x = torch.randint(500, (2, 16))
    with torch.no_grad():
        loss, logits = model(x, x)[1], model(x)[0]
    assert loss.dtype == torch.float32 and logits.dtype == torch.bfloat16
    expected = F.cross_entropy(logits.float().flatten(0, 1), x.flatten())
    assert abs(loss.item() - expected.item()) < 1e-3
