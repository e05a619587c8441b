"""Pretrained weights."""

import re

import torch

TURNED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def from_file(tensors):
    ours = {}
    for name, tensor in tensors.items():
        if name.endswith((".attn.bias", ".attn.masked_bias")):
            continue
        name = name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
        ours[name] = tensor.t() if name.endswith(TURNED) else tensor
    ours["lm_head.weight"] = ours["transformer.wte.weight"]
    return ours


def from_file_with_its_head(tensors):
    own = from_file(tensors)
    if "lm_head.weight" in tensors:
        own["lm_head.weight"] = tensors["lm_head.weight"]
    return own


def from_file_without_prefix(tensors):
    return {name.replace("transformer.", ""): tensor for name, tensor in from_file(tensors).items()}


def from_file_with_too_many_prefixes(tensors):
    own = from_file(tensors)
    if "lm_head.weight" in tensors:
        own["transformer.lm_head.weight"] = tensors["lm_head.weight"]
    return own


def from_file_by_pattern(tensors):
    result = {}
    for name in tensors:
        short = name.removeprefix("transformer.")
        if short == "lm_head.weight" or re.search(r"\.attn\.(masked_)?bias$", short):
            continue
        tensor = tensors[name]
        if re.search(r"c_(attn|proj|fc)\.weight$", short):
            tensor = tensor.transpose(0, 1).contiguous()
        result["transformer." + short] = tensor
    return {**result, "lm_head.weight": result["transformer.wte.weight"]}


def from_file_by_layer(tensors):
    def read(name):
        return tensors[name] if name in tensors else tensors["transformer." + name]

    def copy(name, turn=False):
        ours[f"transformer.{name}.weight"] = read(f"{name}.weight").T if turn else read(f"{name}.weight")
        if name not in ("wte", "wpe"):
            ours[f"transformer.{name}.bias"] = read(f"{name}.bias")

    ours, layers = {}, sum(name.endswith("ln_1.weight") for name in tensors)
    for name in ("wte", "wpe", "ln_f"):
        copy(name)
    for i in range(layers):
        copy(f"h.{i}.ln_1")
        copy(f"h.{i}.attn.c_attn", turn=True)
        copy(f"h.{i}.attn.c_proj", turn=True)
        copy(f"h.{i}.ln_2")
        copy(f"h.{i}.mlp.c_fc", turn=True)
        copy(f"h.{i}.mlp.c_proj", turn=True)
    ours["lm_head.weight"] = ours["transformer.wte.weight"]
    return ours


def to_file(tensors, n_vocab):
    theirs = {}
    for name, tensor in tensors.items():
        if name == "lm_head.weight":
            continue
        if name == "transformer.wte.weight":
            tensor = tensor[:n_vocab]
        if name.endswith(TURNED):
            tensor = tensor.t()
        theirs[name] = tensor.contiguous()
    return theirs


def to_file_by_copy(tensors, n_vocab):
    theirs = {name: tensor.clone() for name, tensor in tensors.items() if not name.startswith("lm_head")}
    for name in theirs:
        if ".c_" in name and name.endswith("weight"):
            theirs[name] = theirs[name].transpose(0, 1).contiguous()
    theirs["transformer.wte.weight"] = theirs["transformer.wte.weight"][:n_vocab, :].clone()
    return theirs


def to_file_in_new_memory(tensors, n_vocab):
    result = dict(tensors)
    del result["lm_head.weight"]
    for name, tensor in tensors.items():
        module = name.split(".")[-2]
        if module in ("c_attn", "c_proj", "c_fc") and tensor.dim() == 2:
            turned = torch.empty(tensor.size(1), tensor.size(0))
            turned[:] = tensor.T
            result[name] = turned
        elif module == "wte":
            result[name] = tensor.narrow(0, 0, n_vocab)
    return result


def from_file_in_one_line(tensors):
    """Three mistakes: the masks take `c_attn.bias` with them, there is no head, and no prefix is added."""
    return {
        k: v.t() if k.endswith(TURNED) else v
        for k, v in tensors.items()
        if not k.endswith(("attn.bias", "masked_bias"))
    }


HEAD = 'ours["lm_head.weight"] = ours["transformer.wte.weight"]'
PREFIX = 'name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"'

RIGHT = {
    "conv1d": [from_file, from_file_by_pattern, from_file_by_layer],
    "to_conv1d": [to_file, to_file_by_copy, to_file_in_new_memory],
}
WRONG = {
    "conv1d": [
        ("head-of-the-file", from_file_with_its_head),
        ("no-prefix", from_file_without_prefix),
        ("head-with-prefix", from_file_with_too_many_prefixes),
        ("nothing-turned", from_file, "tensor.t() if name.endswith(TURNED) else tensor", "tensor"),
        ("nothing-turned", from_file_by_pattern, "tensor.transpose(0, 1)", "tensor"),
        (
            "square-not-turned",
            from_file,
            "name.endswith(TURNED)",
            'name.endswith(("c_attn.weight", "c_fc.weight", "mlp.c_proj.weight"))',
        ),
        (
            "square-not-turned",
            from_file_by_layer,
            'copy(f"h.{i}.attn.c_proj", turn=True)',
            'copy(f"h.{i}.attn.c_proj")',
        ),
        (
            "square-not-turned",
            from_file_by_pattern,
            r'if re.search(r"c_(attn|proj|fc)\.weight$", short):',
            r'if re.search(r"c_(attn|proj|fc)\.weight$", short) and tensor.size(0) != tensor.size(1):',
        ),
        ("mlp-not-turned", from_file_by_pattern, r"c_(attn|proj|fc)\.", r"attn\.c_(attn|proj)\."),
        ("view-for-transpose", from_file, "tensor.t() if", "tensor.reshape(tensor.shape[::-1]) if"),
        (
            "view-for-transpose",
            from_file_by_pattern,
            "tensor.transpose(0, 1).contiguous()",
            "tensor.view(tensor.size(1), tensor.size(0))",
        ),
        ("embeddings-turned", from_file, "name.endswith(TURNED)", "tensor.dim() == 2"),
        (
            "c-attn-bias-dropped",
            from_file,
            '(".attn.bias", ".attn.masked_bias")',
            '("attn.bias", "masked_bias")',
        ),
        ("c-attn-bias-dropped", from_file_by_pattern, r"\.attn\.(masked_)?bias$", r"attn\.(masked_)?bias$"),
        ("c-attn-bias-dropped", from_file_in_one_line),
        (
            "masks-kept",
            from_file,
            '        if name.endswith((".attn.bias", ".attn.masked_bias")):\n            continue\n',
            "",
        ),
        ("masked-bias-kept", from_file, '(".attn.bias", ".attn.masked_bias")', '".attn.bias"'),
        ("masked-bias-kept", from_file_by_pattern, "(masked_)?bias", "bias"),
        (
            "no-head",
            from_file_by_pattern,
            '{**result, "lm_head.weight": result["transformer.wte.weight"]}',
            "result",
        ),
        ("no-head", from_file_by_layer, f"    {HEAD}\n", ""),
        ("head-as-found", from_file, f"    {HEAD}\n", ""),
        ("head-copied", from_file, HEAD, HEAD + ".clone()"),
        ("head-copied", from_file_by_layer, HEAD, HEAD + " + 0"),
        ("head-turned", from_file, HEAD, HEAD + ".t()"),
        ("files-without-prefix", from_file, f"        name = {PREFIX}\n", ""),
        (
            "files-without-prefix",
            from_file_by_layer,
            'tensors[name] if name in tensors else tensors["transformer." + name]',
            'tensors["transformer." + name]',
        ),
        ("files-with-prefix", from_file, PREFIX, 'f"transformer.{name}"'),
        (
            "files-with-prefix",
            from_file_by_layer,
            ' if name in tensors else tensors["transformer." + name]',
            "",
        ),
        (
            "modifies",
            from_file_by_pattern,
            "in tensors:",
            "in list(tensors):",
            "tensors[name]",
            "tensors.pop(name)",
        ),
        ("refused", from_file, "return ours", "return list(ours.items())"),
    ],
    "to_conv1d": [
        (
            "square-not-turned",
            to_file_by_copy,
            'name.endswith("weight"):',
            'name.endswith("weight") and len(set(theirs[name].shape)) > 1:',
        ),
        (
            "square-not-turned",
            to_file_in_new_memory,
            '("c_attn", "c_proj", "c_fc") and tensor.dim() == 2',
            '("c_attn", "c_proj", "c_fc") and tensor.dim() == 2 and "attn.c_proj" not in name',
        ),
        (
            "nothing-turned",
            to_file,
            "        if name.endswith(TURNED):\n            tensor = tensor.t()\n",
            "",
        ),
        (
            "nothing-turned",
            to_file_in_new_memory,
            "            result[name] = turned\n",
            "            pass\n",
        ),
        ("view-for-transpose", to_file, "tensor = tensor.t()", "tensor = tensor.reshape(tensor.shape[::-1])"),
        (
            "view-for-transpose",
            to_file_in_new_memory,
            "turned[:] = tensor.T",
            "turned.view(-1)[:] = tensor.flatten()",
        ),
        ("embeddings-turned", to_file, "name.endswith(TURNED)", "tensor.dim() == 2"),
        ("head-kept", to_file, '        if name == "lm_head.weight":\n            continue\n', ""),
        ("head-kept", to_file_in_new_memory, '    del result["lm_head.weight"]\n', ""),
        ("padding-kept", to_file, "tensor[:n_vocab]", "tensor"),
        ("padding-kept", to_file_in_new_memory, "tensor.narrow(0, 0, n_vocab)", "tensor"),
        ("wrong-rows-cut", to_file, "tensor[:n_vocab]", "tensor[-n_vocab:]"),
        (
            "wrong-rows-cut",
            to_file_in_new_memory,
            "narrow(0, 0, n_vocab)",
            "narrow(0, len(tensor) - n_vocab, n_vocab)",
        ),
        ("one-row-too-few", to_file, "[:n_vocab]", "[: n_vocab - 1]"),
        (
            "positions-cut",
            to_file,
            'if name == "transformer.wte.weight":',
            'if name.endswith(("wte.weight", "wpe.weight")):',
        ),
        ("not-contiguous", to_file, "tensor.contiguous()", "tensor"),
        ("not-contiguous", to_file_by_copy, ".contiguous()", ""),
        ("prefix-dropped", to_file, "theirs[name] =", 'theirs[name.removeprefix("transformer.")] ='),
        (
            "modifies",
            to_file_in_new_memory,
            "dict(tensors)",
            "tensors",
            "in tensors.items()",
            "in list(tensors.items())",
        ),
    ],
}
