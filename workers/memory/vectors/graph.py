"""Writes a BERT sentence encoder as an ONNX graph with 8-bit weights, from its safetensors file, without torch.

    ids (batch, tokens) --> word + position + type embedding --> LayerNorm
                                                                     |
                  +--------------------------------------------------+
                  v            once per layer
      x --> query|key|value --> attention --> dense --> + x, LayerNorm --> dense, GELU, dense --> + , LayerNorm --> x
                                                                                                         |
    vectors (batch, hidden) <-- divided by its length <-- mean over the tokens of the text <-------------+

Every matrix is stored as int8 with one scale per output column; the input of each multiplication is quantised when it
comes (`DynamicQuantizeMatMul`). The word embeddings are int8 with one scale per word. So the file has a quarter of the
size and runs twice as fast; docs/adr/0009 has the figures and what it costs in precision. Runs in the encoder process
only: numpy and onnx are no part of the service.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from workers.memory.vectors.bert import BertConfig, Floats, UnsupportedModel, read_config, read_safetensors

# Operators fused by onnxruntime; part of every build of it. Source: its ContribOperators.md.
_CONTRIB: Final = "com.microsoft"
_OPSET: Final = 18
_IR_VERSION: Final = 9

# int8 is used from -127 to 127, so that a weight and its negative are equally far from zero.
_INT8_MAX: Final = 127.0


def build_graph(folder: Path, *, is_quantised: bool = True) -> onnx.ModelProto:
    """The encoder in `folder` as an ONNX model: ids int64 (batch, tokens), padded right with anything, and lengths
    int32 (batch) to vectors float32 (batch, hidden) of length 1.

    `is_quantised` False keeps every weight as it is: what the quantised graph is compared with.
    Raises UnsupportedModel.
    """
    config = read_config(folder)
    try:
        return _Builder(config, read_safetensors(folder / "model.safetensors"), is_quantised).build()
    except KeyError as error:
        raise UnsupportedModel(f"model.safetensors has no tensor {error}") from error


def quantise(matrix: Floats, axis: int) -> tuple[NDArray[np.int8], Floats]:
    """`matrix` as int8 and the scales that bring it back, one for each line along `axis`."""
    scales = np.abs(matrix).max(axis=axis, keepdims=True) / np.float32(_INT8_MAX)
    scales[scales == 0] = 1
    return np.rint(matrix / scales).astype(np.int8), scales


class _Builder:
    """Gathers nodes and weights. Each method adds some and returns the name of what they compute."""

    def __init__(self, config: BertConfig, tensors: Mapping[str, Floats], is_quantised: bool) -> None:
        self._config = config
        # Models saved with a head have their encoder below "bert.".
        prefix = "bert." if any(name.startswith("bert.") for name in tensors) else ""
        self._tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        self._is_quantised = is_quantised
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def build(self) -> onnx.ModelProto:
        self._constant("zero", np.array([0], np.int64))
        self._constant("one", np.array([1], np.int64))
        states = self._embeddings()
        for layer in range(self._config.num_hidden_layers):
            states = self._layer(f"encoder.layer.{layer}", states)
        self._pooled(states)
        graph = helper.make_graph(
            self._nodes,
            "sentence encoder",
            [
                helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "tokens"]),
                helper.make_tensor_value_info("lengths", TensorProto.INT32, ["batch"]),
            ],
            [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["batch", self._config.hidden_size])],
            self._weights,
        )
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)

    def _embeddings(self) -> str:
        positions = self._tensor("embeddings.position_embeddings.weight")
        # Every token of a single text has type 0.
        types = self._tensor("embeddings.token_type_embeddings.weight")[0]
        tokens = self._node("Shape", ["ids"], "tokens", start=1, end=2)
        here = self._constant("positions", positions + types)
        placed = self._node("Slice", [here, "zero", tokens, "zero"], "placed")
        summed = self._node("Add", [self._words(), placed], "embedded")
        return self._node(
            "LayerNormalization",
            [summed, *self._norm("embeddings.LayerNorm")],
            "embeddings",
            axis=-1,
            epsilon=self._config.layer_norm_eps,
        )

    def _words(self) -> str:
        words = self._tensor("embeddings.word_embeddings.weight")
        if not self._is_quantised:
            return self._node("Gather", [self._constant("words", words), "ids"], "words_of_text")
        whole, scales = quantise(words, axis=1)
        gathered = self._node("Gather", [self._constant("words", whole), "ids"], "words_int8")
        floats = self._node("Cast", [gathered], "words_float", to=TensorProto.FLOAT)
        scale = self._node("Gather", [self._constant("words_scales", scales), "ids"], "words_scale")
        return self._node("Mul", [floats, scale], "words_of_text")

    def _layer(self, name: str, states: str) -> str:
        parts = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
        projected = self._product(
            f"{name}.projected", states, np.concatenate([self._matrix(part) for part in parts], axis=1)
        )
        outputs = [f"{name}.{part}" for part in ("query", "key", "value")]
        self._nodes.append(helper.make_node("Split", [projected], outputs, axis=-1, num_outputs=3))
        bias = np.concatenate([self._tensor(f"{part}.bias") for part in parts])
        attended = self._node(
            "MultiHeadAttention",
            [*outputs, self._constant(f"{name}.attention.bias", bias), "lengths"],
            f"{name}.attended",
            domain=_CONTRIB,
            num_heads=self._config.num_attention_heads,
        )
        output = f"{name}.attention.output"
        states = self._added(output, self._product(output, attended, self._matrix(f"{output}.dense")), states)
        inner = f"{name}.intermediate.dense"
        widened = self._product(inner, states, self._matrix(inner))
        bent = self._node("BiasGelu", [widened, self._weight(f"{inner}.bias")], f"{name}.gelu", domain=_CONTRIB)
        output = f"{name}.output"
        return self._added(output, self._product(output, bent, self._matrix(f"{output}.dense")), states)

    def _product(self, name: str, states: str, matrix: Floats) -> str:
        """`states` times `matrix` (inputs, outputs)."""
        if not self._is_quantised:
            return self._node("MatMul", [states, self._constant(f"{name}.matrix", matrix)], f"{name}.product")
        whole, scales = quantise(matrix, axis=0)
        inputs = [states, self._constant(f"{name}.matrix", whole), self._constant(f"{name}.scales", scales[0])]
        return self._node("DynamicQuantizeMatMul", inputs, f"{name}.product", domain=_CONTRIB)

    def _added(self, name: str, states: str, before: str) -> str:
        """LayerNorm of `states`, its bias and what was `before`."""
        return self._node(
            "SkipLayerNormalization",
            [states, before, *self._norm(f"{name}.LayerNorm"), self._weight(f"{name}.dense.bias")],
            f"{name}.added",
            domain=_CONTRIB,
            epsilon=self._config.layer_norm_eps,
        )

    def _pooled(self, states: str) -> str:
        """The mean over the tokens of each text, then length 1. The sum points where the mean does, so it is enough."""
        self._constant("from", np.array(0, np.int64))
        self._constant("step", np.array(1, np.int64))
        count = self._node("Squeeze", ["tokens", "zero"], "token_count")
        steps = self._node("Range", ["from", count, "step"], "steps")
        lengths = self._node("Cast", ["lengths"], "lengths_wide", to=TensorProto.INT64)
        column = self._node("Unsqueeze", [lengths, "one"], "length_column")
        inside = self._node("Less", [steps, column], "is_inside")
        mask = self._node("Cast", [inside], "mask", to=TensorProto.FLOAT)
        row = self._node("Unsqueeze", [mask, "one"], "mask_row")
        summed = self._node("MatMul", [row, states], "sum_row")
        return self._node("LpNormalization", [self._node("Squeeze", [summed, "one"], "sum")], "vectors", axis=-1, p=2)

    def _norm(self, name: str) -> list[str]:
        return [self._weight(f"{name}.weight"), self._weight(f"{name}.bias")]

    def _weight(self, name: str) -> str:
        return self._constant(name, self._tensor(name))

    def _matrix(self, name: str) -> Floats:
        """A linear layer's weights as (inputs, outputs); files hold them the other way round."""
        return self._tensor(f"{name}.weight").T

    def _tensor(self, name: str) -> Floats:
        return self._tensors[name]

    def _constant(self, name: str, array: NDArray[Any]) -> str:
        self._weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def _node(self, operator: str, inputs: list[str], output: str, *, domain: str = "", **attributes: Any) -> str:
        self._nodes.append(helper.make_node(operator, inputs, [output], domain=domain, **attributes))
        return output
