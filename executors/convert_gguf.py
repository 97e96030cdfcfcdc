"""Turn a GGUF file into a folder that transformers and vLLM load: `python -m executors.convert_gguf FILE.gguf FOLDER`.

The weights are dequantised by transformers and saved once as bfloat16 safetensors, with the tokenizer and its chat
template beside them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def convert(source: Path, folder: Path) -> None:
    """Convert one GGUF file; the folder is complete when this returns."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16)
    if hasattr(model.config, "quantization_config"):
        delattr(model.config, "quantization_config")
    for name, value in (("is_quantized", False), ("hf_quantizer", None)):
        setattr(model, name, value)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config.pop("quantization_config", None)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
