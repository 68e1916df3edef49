"""The model card: README.md of a model folder, all of it printed from the configuration."""

import json
from collections.abc import Mapping
from typing import Any

from rnope.hf.keys import context_key, unknown_keys
from rnope.hf.mapping import ARCHITECTURES, obstacles
from rnope.hf.programs import Opens, programs
from rnope.model.accounting import cache_bytes, parameters
from rnope.model.spec import ModelConfig

_CARD = """\
---
library_name: {library}
pipeline_tag: text-generation
tags:
- rnope
---

# A decoder of {layers} layers, {parameters:,} parameters

Written by `rnope`; `config.json` says `model_type: {kind}`. Every figure here is printed from that file.

## Layers

```
{table}
```

Width {width:,}, {heads} query heads, {kv_heads} key-value heads of size {head_size}, SwiGLU width {ffn_width:,},
vocabulary {vocab_size:,}, tied embedding, `logit_scale` {logit_scale:g}.
Context limit in `config.json`: {context:,} tokens; keys and values take {cache:,} bytes there at 2 bytes a value.

## What opens it

{opens}

```python
import rnope

model = rnope.load("FOLDER")
logits = model(ids)  # ids [batch, tokens] -> [batch, tokens, {vocab_size}]
```

What the code of other programs says of these layers (llama.cpp: after `rnope export`):

{others}

{keys}## Where it came from

{provenance}
"""

_KEPT = """\
## Kept of the configuration before it

These keys of `config.json` mean nothing to `rnope`, which hands them on:

```json
{kept}
```

"""

_LEFT_OUT = """\
## Left out of the configuration before it

These keys of its `config.json` named code, which `rnope` neither runs nor hands on:

```json
{left_out}
```

"""

_TRANSFORMERS = """\
`transformers` (5 or later) as `{architecture}`, without custom code:

```python
from transformers import AutoModelForCausalLM{and_tokenizer}

model = AutoModelForCausalLM.from_pretrained("FOLDER"){tokenizer_line}
```

and `rnope`:"""

_ONLY_HERE = """\
Only `rnope`; no class of `transformers` can say these layers:

{reasons}
"""


def model_card(
    config: ModelConfig, raw: Mapping[str, Any], *, with_tokenizer: bool, left_out: Mapping[str, Any] | None = None
) -> str:
    """The card of a model of `config`, whose config.json is `raw`; `left_out` is what was not handed on to it."""
    kept = unknown_keys(raw)
    keys = _KEPT.format(kept=_json(kept)) if kept else ""
    keys += _LEFT_OUT.format(left_out=_json(left_out)) if left_out else ""
    kind = raw["model_type"]
    if kind == "rnope":
        opens = _ONLY_HERE.format(reasons="\n".join(f"- {reason}" for reason in obstacles(config)))
    else:
        opens = _TRANSFORMERS.format(
            architecture=ARCHITECTURES[kind],
            and_tokenizer=", AutoTokenizer" if with_tokenizer else "",
            tokenizer_line='\ntokenizer = AutoTokenizer.from_pretrained("FOLDER")' if with_tokenizer else "",
        )
    others = [f"- {opened.program}: {_how(opened)}" for opened in programs(config) if opened.program != "transformers"]
    context, provenance = raw[context_key(raw)], raw["rnope"]["provenance"]
    return _CARD.format(
        library="rnope" if kind == "rnope" else "transformers",
        layers=len(config.layers),
        parameters=parameters(config),
        kind=kind,
        table=config.layer_table(),
        width=config.width,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_size=config.head_size,
        ffn_width=config.ffn_width,
        vocab_size=config.vocab_size,
        logit_scale=config.logit_scale,
        context=context,
        cache=cache_bytes(config, context),
        opens=opens.rstrip(),
        others="\n".join(others),
        keys=keys,
        provenance=f"```json\n{_json(provenance)}\n```" if provenance else "Not recorded.",
    )


def _how(opened: Opens) -> str:
    if opened.architecture is None:
        return " ".join(opened.reasons)
    return f"as `{opened.architecture}`" + (f", with `{opened.options}`" if opened.options else "")


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
