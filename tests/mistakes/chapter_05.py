"""GPT and its loss."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from gpt2lib.block import Block


def loss_torch(logits, targets):
    B, T, V = logits.shape
    return F.cross_entropy(logits.view(B * T, V), targets.view(B * T))


def loss_by_hand(logits, targets):
    largest = logits.max(-1, keepdim=True).values
    log_sum = largest[..., 0] + (logits - largest).exp().sum(-1).log()
    of_target = logits.gather(-1, targets[..., None])[..., 0]
    return (log_sum - of_target).mean()


def loss_loops(logits, targets):
    total = 0.0
    B, T, V = logits.shape
    for b in range(B):
        for t in range(T):
            z = logits[b, t]
            top = z.max()
            p = (z - top).exp() / (z - top).exp().sum()
            if p[targets[b, t]] > 0:
                total = total - p[targets[b, t]].log()
            else:
                total = total + (z - top).exp().sum().log() - (z[targets[b, t]] - top)
    return total / (B * T)


def loss_one_hot(logits, targets):
    log_p = torch.log_softmax(logits, dim=-1)
    picked = (F.one_hot(targets, logits.size(-1)) * log_p).sum(-1)
    return -picked.mean(dim=(0, 1))


def loss_transposed(logits, targets):
    return F.cross_entropy(logits.transpose(1, 2), targets)


def loss_naive(logits, targets):
    p = logits.exp() / logits.exp().sum(-1, keepdim=True)
    return -p.gather(-1, targets[..., None]).log().mean()


class GPTPlain(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(
            dict(
                wte=nn.Embedding(config.vocab_size, config.n_embd),
                wpe=nn.Embedding(config.block_size, config.n_embd),
                h=nn.ModuleList([Block(config) for _ in range(config.n_layer)]),
                ln_f=nn.LayerNorm(config.n_embd),
            )
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight
        self.apply(self._init_weights)
        nn.init.normal_(self.transformer.wpe.weight, std=0.01)

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            std = 0.02
            if hasattr(module, "RESIDUAL_PROJECTION"):
                std *= (2 * self.config.n_layer) ** -0.5
            nn.init.normal_(module.weight, mean=0.0, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)

    def forward(self, idx, targets=None):
        B, T = idx.shape
        pos = torch.arange(0, T)
        tok_emb = self.transformer.wte(idx)
        pos_emb = self.transformer.wpe(pos)
        x = tok_emb + pos_emb
        for block in self.transformer.h:
            x = block(x)
        x = self.transformer.ln_f(x)
        logits = self.lm_head(x)
        loss = None
        if targets is not None:
            loss = F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))
        return logits, loss


class GPTByName(nn.Module):
    def __init__(self, config):
        super().__init__()
        V, C = config.vocab_size, config.n_embd
        parts = {"wte": nn.Embedding(V, C), "wpe": nn.Embedding(config.block_size, C)}
        parts |= {"h": nn.ModuleList(Block(config) for _ in range(config.n_layer)), "ln_f": nn.LayerNorm(C)}
        self.transformer = nn.ModuleDict(parts)
        self.lm_head = nn.Linear(C, V, bias=False)
        self.lm_head.weight = self.transformer.wte.weight
        for name, p in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer))
            elif name.endswith("wpe.weight"):
                nn.init.normal_(p, std=0.01)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
            elif "ln_" not in name:
                nn.init.normal_(p, std=0.02)

    def forward(self, idx, targets=None):
        x = self.transformer.wte(idx) + self.transformer.wpe.weight[: idx.size(1)]
        x = F.dropout(x, 0.1, self.training)
        for block in self.transformer.h:
            x = block(x)
        logits = self.lm_head(self.transformer.ln_f(x))
        if targets is None:
            return logits, None
        return None, -logits.log_softmax(-1).gather(-1, targets[..., None]).mean()


class GPTWithoutHead(nn.Module):
    """The table is used twice, and no second module holds it."""

    def __init__(self, config):
        super().__init__()
        self.transformer = nn.Module()
        self.transformer.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.transformer.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.transformer.h = nn.Sequential(*[Block(config) for _ in range(config.n_layer)])
        self.transformer.ln_f = nn.LayerNorm(config.n_embd)
        with torch.no_grad():
            self.transformer.wte.weight.mul_(0.02)
            self.transformer.wpe.weight.mul_(0.01)
            for block in self.transformer.h:
                for linear in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
                    linear.weight.normal_(0, 0.02)
                    linear.bias.zero_()
                for linear in (block.attn.c_proj, block.mlp.c_proj):
                    linear.weight /= (2 * config.n_layer) ** 0.5

    def forward(self, idx, targets=None):
        one_hot = F.one_hot(idx, self.transformer.wte.num_embeddings).float()
        x = one_hot @ self.transformer.wte.weight + self.transformer.wpe(torch.arange(idx.size(1)))
        x = self.transformer.ln_f(self.transformer.h(x))
        logits = torch.einsum("btc,vc->btv", x, self.transformer.wte.weight)
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


RIGHT = {
    "loss": [loss_torch, loss_by_hand, loss_loops, loss_one_hot, loss_transposed],
    "gpt": [GPTPlain, GPTByName, GPTWithoutHead],
}
MEAN = "(log_sum - of_target).mean()"
LOSS = "        x = self.transformer.ln_f(x)\n        logits = self.lm_head(x)\n"
CALL = "F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))"
TIE = "        self.transformer.wte.weight = self.lm_head.weight\n"
WRONG = {
    "loss": [
        ("overflow", loss_by_hand, "logits.max(-1, keepdim=True).values", "logits.max().expand(*logits.shape[:2], 1)"),
        ("not-flattened", loss_torch, "logits.view(B * T, V), targets.view(B * T)", "logits, targets"),
        ("gather-keeps-its-axis", loss_by_hand, "targets[..., None])[..., 0]", "targets[..., None])"),
        ("gather-keeps-its-axis", loss_by_hand, "targets[..., None])[..., 0]", "targets.unsqueeze(2))"),
        ("all-targets-everywhere", loss_one_hot, "(F.one_hot(targets, logits.size(-1)) * log_p).sum(-1)", "log_p[..., targets]",
         "mean(dim=(0, 1))", "mean()"),
        ("overflow", loss_naive),
        ("overflow", loss_by_hand, "logits.max(-1, keepdim=True).values", "torch.zeros(*logits.shape[:2], 1)"),
        ("sum", loss_by_hand, MEAN, "(log_sum - of_target).sum()"),
        ("sum", loss_torch, "targets.view(B * T)", 'targets.view(B * T), reduction="sum"'),
        ("sum-over-positions", loss_loops, "total / (B * T)", "total / B"),
        ("divided-by-vocabulary", loss_one_hot, "-picked.mean(dim=(0, 1))", "-picked.sum() / logits.numel()"),
        ("divided-by-vocabulary", loss_one_hot, "log_p).sum(-1)", "log_p)", "mean(dim=(0, 1))", "mean()"),
        ("no-minus", loss_one_hot, "-picked", "picked"),
        ("no-minus", loss_by_hand, "log_sum - of_target", "of_target - log_sum"),
        ("bits", loss_by_hand, MEAN, "(log_sum - of_target).mean() / math.log(2)"),
        ("perplexity", loss_torch, "targets.view(B * T))", "targets.view(B * T)).exp()"),
        ("probabilities-for-logits", loss_torch, "logits.view(B * T, V)", "F.softmax(logits, dim=-1).view(B * T, V)"),
        ("no-normalisation", loss_by_hand, MEAN, "-of_target.mean()"),
        ("no-logarithm", loss_one_hot, "torch.log_softmax", "torch.softmax", "-picked.mean(dim=(0, 1))", "(1 - picked).mean()"),
        ("log-of-mean", loss_one_hot, "-picked.mean(dim=(0, 1))", "-picked.exp().mean().log()"),
        ("shifted-again", loss_transposed, "logits.transpose(1, 2), targets", "logits[:, :-1].transpose(1, 2), targets[:, 1:]"),
        ("wrong-axis", loss_one_hot, "dim=-1", "dim=1"),
        ("view-for-transpose", loss_transposed, "logits.transpose(1, 2)", "logits.view(logits.size(0), -1, logits.size(1))"),
        ("best-token", loss_by_hand, "logits.gather(-1, targets[..., None])[..., 0]", "logits.max(-1).values"),
        ("no-logarithm", loss_torch, "F.cross_entropy(logits.view(B * T, V)", "F.nll_loss(logits.softmax(-1).view(B * T, V)"),
        ("sum-over-sequences", loss_one_hot, "mean(dim=(0, 1))", "sum(0).mean()"),
        ("another-base", loss_by_hand, ".sum(-1).log()", ".sum(-1).log2()"),
        ("another-base", loss_by_hand, ".sum(-1).log()", ".sum(-1).log10()"),
        ("another-base", loss_by_hand, "(log_sum - of_target).mean()", "(log_sum - of_target).mean() / math.log(10)"),
        ("largest-not-added-back", loss_by_hand, "largest[..., 0] + (", "("),
        ("largest-over-positions", loss_one_hot, "torch.log_softmax(logits, dim=-1)",
         "logits - logits.max(1, keepdim=True).values\n    log_p = log_p - log_p.exp().sum(-1, keepdim=True).log()"),
        ("sum-over-the-wrong-axis", loss_one_hot, "torch.log_softmax(logits, dim=-1)", "logits - logits.exp().sum().log()"),
        ("sum-over-the-wrong-axis", loss_one_hot, "torch.log_softmax(logits, dim=-1)",
         "logits - logits.max(-1, keepdim=True).values\n    log_p = log_p - log_p.exp().sum(1, keepdim=True).log()"),
        ("mean-for-sum", loss_by_hand, ".exp().sum(-1)", ".exp().mean(-1)"),
        ("batch-and-positions-exchanged", loss_torch, "targets.view(B * T)", "targets.T.reshape(B * T)"),
        ("batch-and-positions-exchanged", loss_torch, "logits.view(B * T, V)", "logits.transpose(0, 1).reshape(B * T, V)"),
        ("targets-renumbered", loss_loops, "t in range(T):\n", "t in range(T):\n            targets = (targets - 1) % V if b == t == 0 else targets\n"),
        ("smoothed", loss_torch, "targets.view(B * T)", "targets.view(B * T), label_smoothing=0.1"),
        ("token-0-ignored", loss_transposed, "(1, 2), targets)", "(1, 2), targets, ignore_index=0)"),
        ("positions-left-out", loss_by_hand, MEAN, "(log_sum - of_target)[:, -1].mean()"),
        ("positions-left-out", loss_transposed, "logits.transpose(1, 2), targets", "logits[:, :-1].transpose(1, 2), targets[:, :-1]"),
        ("large-logits", loss_transposed, "logits.transpose", "logits.clamp(-50, 50).transpose"),
        ("large-logits", loss_one_hot, "torch.log_softmax(logits, dim=-1)", "(torch.softmax(logits, dim=-1) + 1e-8).log()"),
        ("nearly-right", loss_transposed, "logits.transpose", "logits.bfloat16().float().transpose"),
        ("shape", loss_torch, "targets.view(B * T)", 'targets.view(B * T), reduction="none"'),
        ("type", loss_torch, "targets.view(B * T))", "targets.view(B * T)).item()"),
        ("gradient", loss_one_hot, "torch.log_softmax(logits,", "torch.log_softmax(logits.data,"),
        ("modifies", loss_by_hand, "(logits - largest).exp()", "logits.sub_(largest).exp()", "+ ", "+ 0 * "),
    ],
    "gpt": [
        ("no-transformer", GPTPlain, "nn.ModuleDict(\n            dict(", "(\n            dict(", "self.transformer.wte.weight = ", 'self.transformer["wte"].weight = ',
         "self.transformer.wpe.weight, std", 'self.transformer["wpe"].weight, std', "self.transformer.wte(", 'self.transformer["wte"](',
         "self.transformer.wpe(", 'self.transformer["wpe"](', "in self.transformer.h:", 'in self.transformer["h"]:', "self.transformer.ln_f(", 'self.transformer["ln_f"]('),
        ("no-transformer", GPTWithoutHead, "        self.transformer = nn.Module()\n", "        self.__dict__['transformer'] = self\n"),
        ("position-table-whole", GPTByName, "wpe.weight[: idx.size(1)]", "wpe.weight"),
        ("not-flattened", GPTPlain, CALL, "F.cross_entropy(logits, targets)"),
        ("deviation-for-variance", GPTPlain, "std = 0.02\n", "std = 0.02**0.5\n"),
        ("deviation-for-variance", GPTByName, "std=0.02)", "std=math.sqrt(0.02))"),
        ("positions-along-batch", GPTPlain, "B, T = idx.shape", "T, B = idx.shape"),
        ("positions-along-batch", GPTByName, "self.transformer.wpe.weight[: idx.size(1)]", "self.transformer.wpe(torch.arange(len(idx)))[:, None]"),
        ("blocks-in-a-list", GPTPlain, "h=nn.ModuleList([Block(config) for _ in range(config.n_layer)]),\n", "",
         TIE, TIE + "        self.h = [Block(config) for _ in range(config.n_layer)]\n", "in self.transformer.h:", "in self.h:"),
        ("no-final-norm", GPTPlain, "                ln_f=nn.LayerNorm(config.n_embd),\n", "", "        x = self.transformer.ln_f(x)\n", ""),
        ("no-position-table", GPTPlain, "                wpe=nn.Embedding(config.block_size, config.n_embd),\n", "",
         "        nn.init.normal_(self.transformer.wpe.weight, std=0.01)\n", "",
         "        pos_emb = self.transformer.wpe(pos)\n", "", "tok_emb + pos_emb", "tok_emb"),
        ("head-bias", GPTPlain, "config.vocab_size, bias=False", "config.vocab_size"),
        ("position-table-size", GPTPlain, "wpe=nn.Embedding(config.block_size,", "wpe=nn.Embedding(config.vocab_size,"),
        ("one-block-many-times", GPTPlain, "[Block(config) for _ in range(config.n_layer)]", "[Block(config)] * config.n_layer"),
        ("untied", GPTPlain, TIE, ""),
        ("untied", GPTPlain, "wte.weight = self.lm_head.weight", "wte.weight.data.copy_(self.lm_head.weight)"),
        ("untied", GPTByName, "self.transformer.wte.weight\n        for",
         "nn.Parameter(self.transformer.wte.weight.clone())\n        for"),
        ("table-as-pytorch-draws-it", GPTByName, '"ln_" not in name', '"ln_" not in name and "wte" not in name'),
        ("positions-0.02", GPTPlain, "        nn.init.normal_(self.transformer.wpe.weight, std=0.01)\n", ""),
        ("positions-0.02", GPTByName, "std=0.01", "std=0.02"),
        ("positions-as-pytorch-draws-them", GPTWithoutHead, "            self.transformer.wpe.weight.mul_(0.01)\n", ""),
        ("linear-as-pytorch-draws-it", GPTByName, '"ln_" not in name', '"wte" in name'),
        ("no-residual-scale", GPTPlain, 'if hasattr(module, "RESIDUAL_PROJECTION")', 'if module == "c_proj.weight"'),
        ("no-residual-scale", GPTByName, " / math.sqrt(2 * config.n_layer)", ""),
        ("one-branch-a-block", GPTPlain, "(2 * self.config.n_layer)", "self.config.n_layer"),
        ("scaled-twice", GPTPlain, "** -0.5", "** -1"),
        ("variance-for-deviation", GPTPlain, "std = 0.02\n", "std = 0.02**2\n"),
        ("biases-not-zero", GPTPlain, "nn.init.zeros_(module.bias)", "pass"),
        ("dropout-in-eval", GPTByName, "F.dropout(x, 0.1, self.training)", "F.dropout(x, 0.1)"),
        ("loss-always", GPTPlain, "loss = None", "loss = 0.0"),
        ("no-positions", GPTPlain, "tok_emb + pos_emb", "tok_emb"),
        ("positions-from-one", GPTPlain, "torch.arange(0, T)", "torch.arange(1, T + 1)"),
        ("positions-from-the-end", GPTByName, "wpe.weight[: idx.size(1)]", "wpe.weight[: idx.size(1)].flip(0)"),
        ("positions-at-the-top", GPTPlain, "tok_emb + pos_emb", "tok_emb", "            x = block(x)\n", "            x = block(x)\n        x = x + pos_emb\n"),
        ("scaled-embedding", GPTPlain, "tok_emb = self.transformer.wte(idx)", "tok_emb = self.transformer.wte(idx) * self.config.n_embd**0.5"),
        ("norm-unused", GPTPlain, "        x = self.transformer.ln_f(x)\n", ""),
        ("norm-below", GPTPlain, LOSS, "        logits = self.lm_head(x)\n", "x = tok_emb + pos_emb", "x = self.transformer.ln_f(tok_emb + pos_emb)"),
        ("mean-not-zero", GPTPlain, "module.weight, mean=0.0, std=std", "module.weight, 0.02, std"),
        ("mean-not-zero", GPTByName, "std=0.02)", "mean=0.02, std=0.02)"),
        ("seed-inside", GPTPlain, "        self.config = config\n", "        self.config = config\n        torch.manual_seed(1337)\n"),
        ("first-block-only", GPTPlain, "            x = block(x)\n", "            x = block(x)\n            break\n"),
        ("last-position", GPTPlain, "        return logits, loss", "        return logits if loss is not None else logits[:, [-1]], loss"),
        ("probabilities", GPTPlain, "        return logits, loss", "        return F.softmax(logits, dim=-1), loss"),
        ("probabilities", GPTPlain, "logits = self.lm_head(x)", "logits = self.lm_head(x).softmax(-1)"),
        ("log-probabilities", GPTByName, "logits = self.lm_head(self.transformer.ln_f(x))", "logits = self.lm_head(self.transformer.ln_f(x)).log_softmax(-1)"),
        ("loss-shifted-again", GPTPlain, CALL, "F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())"),
        ("loss-sum", GPTPlain, "targets.view(-1))", 'targets.view(-1), reduction="sum")'),
        ("loss-probabilities-for-logits", GPTPlain, "logits.view(-1, logits.size(-1))", "logits.softmax(-1).view(-1, logits.size(-1))"),
        ("loss-view-for-transpose", GPTPlain, CALL, "F.cross_entropy(logits.view(B, -1, T), targets)"),
        ("number-of-blocks", GPTPlain, "range(config.n_layer)", "range(config.n_layer - 1)"),
        ("number-of-blocks", GPTByName, "range(config.n_layer)", "range(config.n_layer + 1)"),
        ("ten-times-too-large", GPTPlain, "std = 0.02\n", "std = 0.2\n"),
        ("evenly-drawn", GPTPlain, "nn.init.normal_(module.weight, mean=0.0, std=std)", "nn.init.uniform_(module.weight, -std, std)"),
        ("all-divided", GPTByName, "name.endswith(\"c_proj.weight\")", "name.endswith(\"weight\") and \"ln_\" not in name"),
        ("one-branch-divided", GPTByName, '"c_proj.weight"', '"attn.c_proj.weight"'),
        ("one-branch-divided", GPTByName, '"c_proj.weight"', '"mlp.c_proj.weight"'),
        ("residual-scale-upside-down", GPTByName, "0.02 / math.sqrt", "0.02 * math.sqrt"),
        ("head-drawn-last", GPTPlain, TIE, "", "        self.apply(self._init_weights)\n",
         "        self.apply(self._init_weights)\n        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)\n" + TIE),
        ("gains-not-one", GPTByName, 'elif "ln_" not in name:', "else:"),
        ("first-weights", GPTByName, "std=0.02)", "std=0.05)"),
        ("first-weights", GPTPlain, "std=0.01", "std=0.03"),
        ("loss-wrong", GPTPlain, "targets.view(-1))", "targets.view(-1)) * 2"),
        ("loss-wrong", GPTByName, "gather(-1, targets[..., None]).mean()", "gather(-1, targets[..., None])[:, -1].mean()"),
        ("positions-by-token", GPTPlain, "self.transformer.wpe(pos)", "self.transformer.wpe(idx)"),
        ("positions-by-token", GPTPlain, "self.transformer.wpe(pos)", "self.transformer.wpe(idx % self.config.block_size)"),
        ("positions-from-one", GPTPlain, "wpe(pos)", "wpe((pos + 1) % self.config.block_size)"),
        ("positions-multiplied", GPTPlain, "tok_emb + pos_emb", "tok_emb * pos_emb"),
        ("blocks-backwards", GPTByName, "in self.transformer.h:", "in reversed(self.transformer.h):"),
        ("blocks-without-effect", GPTByName, "x = block(x)", "block(x)"),
        ("stream-added-again", GPTPlain, "x = block(x)", "x = x + block(x)"),
        ("norm-in-the-loop", GPTPlain, "x = block(x)", "x = self.transformer.ln_f(block(x))"),
        ("norm-in-the-loop", GPTPlain, "        x = self.transformer.ln_f(x)\n", "            x = self.transformer.ln_f(x)\n"),
        ("loss-token-0-ignored", GPTPlain, "targets.view(-1))", "targets.view(-1), ignore_index=0)"),
        ("loss-batch-and-positions-exchanged", GPTPlain, "targets.view(-1)", "targets.t().flatten()"),
        ("gradient", GPTPlain, "self.transformer.ln_f(x)", "self.transformer.ln_f(x).detach()"),
        ("refused", GPTPlain, "        return logits, loss", "        return logits"),
    ],
}  # fmt: skip
