"""Arrays in, arrays out."""

import threading

import onnx_graft
import pytest

np = pytest.importorskip("numpy")


@pytest.fixture
def inputs():
    ids = np.array([[5, 6, 7, 8], [9, 10, 11, 12]])
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def test_the_same_numbers_as_onnx_runtime(fixtures, inputs):
    runtime = pytest.importorskip("onnxruntime")
    for folder in ["gpt2", "bert", "qwen3"]:
        path = fixtures / folder / "model.onnx"
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        known = {**inputs, "token_type_ids": np.zeros_like(inputs["input_ids"])}
        known["position_ids"] = np.broadcast_to(np.arange(4), (2, 4))
        given = {i.name: known[i.name] for i in session.get_inputs() if i.name in known}
        names = [o.name for o in session.get_outputs()]
        theirs = dict(zip(names, session.run(names, given)))
        ours = onnx_graft.run(path, given)
        assert list(ours) == names
        for name in names:
            # Both sum in float32, in different orders.
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-4, err_msg=f"{folder} {name}")


def test_an_adapter_changes_outputs_and_merging_keeps_them(fixtures, inputs, desk):
    seed = {"adapters": {"a": "lora[r=2,init_weights='bert']"}, "seed": 3}
    plain = onnx_graft.run(desk / "model.onnx", inputs)["logits"]
    assert plain.dtype == np.float32 and plain.shape[:2] == (2, 4)
    adapted = onnx_graft.run(desk / "model.onnx", inputs, **seed)["logits"]
    assert not np.array_equal(plain, adapted)
    written = onnx_graft.attach(desk / "model.onnx", **seed)
    np.testing.assert_array_equal(onnx_graft.run(written.model, inputs)["logits"], adapted)
    merged = onnx_graft.merge(desk / "model.onnx", {"a": written.adapters[0]}, desk / "merged.onnx")
    # One product in the place of two: other roundings.
    np.testing.assert_allclose(onnx_graft.run(merged.model, inputs)["logits"], adapted, rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_finite_differences(fixtures, inputs):
    model = onnx_graft.Model(fixtures / "gpt2/model.onnx", "lora[r=2,init_weights='bert']", loss="causal-lm", grad=True)
    out = model({**inputs, "labels": inputs["input_ids"]})
    grads = {name: value for name, value in out.items() if name.startswith("grad/")}
    assert grads and all(np.isfinite(g).all() for g in grads.values())
    assert out["loss"].shape == ()
    one = onnx_graft.Model(fixtures / "gpt2/model.onnx", loss="causal-lm", outputs=["logits"])
    logits = one({**inputs, "labels": inputs["input_ids"]})["logits"].astype("f8")[:, :-1]
    picked = np.take_along_axis(logits, inputs["input_ids"][:, 1:, None], -1)[..., 0]
    loss = (np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1) - picked).mean()
    np.testing.assert_allclose(one({**inputs, "labels": inputs["input_ids"]})["loss"], loss, rtol=1e-5)


def test_inner_values_and_types(fixtures, inputs):
    with pytest.raises(onnx_graft.Error) as caught:
        onnx_graft.run(fixtures / "gpt2/model.onnx", {"input_ids": inputs["input_ids"].astype("f4")})
    assert caught.value.kind == "run"
    with pytest.raises(TypeError, match="complex"):
        onnx_graft.run(fixtures / "gpt2/model.onnx", {"input_ids": inputs["input_ids"].astype("c8")})
    big = {name: value.astype(">i8")[::-1][::-1] for name, value in inputs.items()}
    model = onnx_graft.Model(fixtures / "gpt2/model.onnx")
    first, second = model(inputs)["logits"], model(big)["logits"]
    np.testing.assert_array_equal(first, second)
    first[0] = 0  # The array is its owner's.


def test_threads_may_share_a_model(fixtures, inputs):
    model = onnx_graft.Model(fixtures / "gpt2/model.onnx")
    want = model(inputs)["logits"]
    found = []
    threads = [threading.Thread(target=lambda: found.append(model(inputs)["logits"])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(np.array_equal(f, want) for f in found)
