"""Equal to `transformers` on shapes that nobody chose."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2lib import GPT, GPTConfig, generate

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


@settings(max_examples=25, deadline=None)
@given(configs(), st.integers(1, 4), st.data())
def test_logits_loss_and_every_gradient_equal_those_of_transformers(config, B, data):
    T = data.draw(st.integers(2, config.block_size))
    ours, theirs = pair(config, data.draw(st.integers(0, 99)))
    x, y = torch.randint(config.vocab_size, (B, T)), torch.randint(config.vocab_size, (B, T))
    logits = theirs(x).logits
    assert (ours(x)[0] - logits).abs().max() < 1e-4
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
    _, loss = ours(x, y)
    assert abs(loss.item() / expected.item() - 1) < 1e-4
    loss.backward()
    expected.backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        want = gradients[name].grad
        want = want.t() if name.endswith(CONV1D) else want
        assert (parameter.grad - want).norm() <= 1e-4 * want.norm() + 1e-6, name


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


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_greedy_continuation_equals_that_of_transformers(attention):
    config = GPTConfig(block_size=230, vocab_size=211, n_layer=3, n_head=5, n_embd=40)
    ours, theirs = pair(config, 3, attention)
    prompt = torch.randint(config.vocab_size, (2, 7))
    want = theirs.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=200,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    for use_cache in (True, False):
        assert torch.equal(generate(ours, prompt, 200, temperature=0, use_cache=use_cache), want)


def test_the_head_is_the_token_embedding():
    model = (
        GPT(GPTConfig(block_size=8, vocab_size=30, n_layer=1, n_head=1, n_embd=4)).to(torch.float64).float()
    )
    assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()
    assert sum(p.numel() for p in GPT(GPTConfig()).parameters()) == 124_439_808
