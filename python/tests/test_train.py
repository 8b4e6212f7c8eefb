"""Training, measuring, generating."""

import json
import signal
import threading

import onnx_graft
import pytest


@pytest.fixture
def job(fixtures, tmp_path):
    return {
        "model": fixtures / "qwen3/model.onnx",
        "adapter": "lora[r=2]",
        "data": fixtures / "train/ids.jsonl",
        "output_dir": tmp_path / "out",
        "learning_rate": 1e-2,
        "max_steps": 4,
    }


def test_a_training_learns_and_tells(job, tmp_path):
    events = []
    report = onnx_graft.train(job, on_event=events.append, seed=7)
    assert report.steps == 4 and len(report.losses) == 4
    assert report.last_loss < report.first_loss
    steps = [e for e in events if e["event"] == "step"]
    assert [e["loss"] for e in steps] == report.losses
    assert [e["reason"] for e in events if e["event"] == "end"] == ["finished"]
    assert (tmp_path / "out/lora/adapter_config.json").exists()


def test_a_job_is_a_file_a_dictionary_or_a_model(job, tmp_path):
    first = onnx_graft.train(job)
    settings = {**job, "output_dir": tmp_path / "two"}
    second = onnx_graft.train(settings.pop("model"), adapters=settings.pop("adapter"), **settings)
    file = tmp_path / "job.json"
    file.write_text(json.dumps({k: v if isinstance(v, (int, float)) else str(v) for k, v in job.items()}))
    third = onnx_graft.train(file, output_dir=tmp_path / "three")
    assert first.losses == second.losses == third.losses


def test_a_wrong_setting_names_the_nearest(job):
    with pytest.raises(onnx_graft.Error) as caught:
        onnx_graft.train(job, learning_rat=1.0)
    assert "learning_rate" in str(caught.value)
    with pytest.raises(TypeError, match="model"):
        onnx_graft.train(max_steps=1)


def test_a_dry_run_says_what_it_would_be(job):
    assert onnx_graft.train(job, dry_run=True).dry_run["steps"] == 4


@pytest.mark.parametrize("elsewhere", [False, True])
def test_ctrl_c_ends_a_training_with_a_checkpoint(job, tmp_path, elsewhere):
    """The signal comes while Python's function runs, or while the library works."""

    def interrupt(event):
        if event["event"] == "step" and event["step"] == 2:
            if elsewhere:
                threading.Thread(target=signal.raise_signal, args=[signal.SIGINT]).start()
            else:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="checkpoint"):
        onnx_graft.train(job, max_steps=200, on_event=interrupt)
    checkpoints = list((tmp_path / "out").glob("checkpoint-*"))
    assert len(checkpoints) == 1
    report = onnx_graft.train(job, max_steps=200, resume_from_checkpoint=True)
    assert report.steps == 200 and len(report.losses) < 200


def test_what_the_listener_raises_is_raised(job):
    def stop(event):
        if event["event"] == "step":
            raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        onnx_graft.train(job, on_event=stop)


def test_evaluation(job):
    onnx_graft.train(job)
    base = onnx_graft.evaluate(job["model"], data=job["data"], max_eval_samples=4)
    tuned = onnx_graft.evaluate(job["model"], adapters=job["output_dir"] / "lora", data=job["data"], max_eval_samples=4)
    assert base.samples == tuned.samples == 4
    assert tuned.metrics["loss"] < base.metrics["loss"]


def test_generation(fixtures):
    question = "Question: Tom has 3 apples . Tom buys 4 apples . how many apples has Tom now ? Answer:"
    pieces = []
    report = onnx_graft.generate(
        fixtures / "skill/model.onnx",
        [question, question],
        max_new_tokens=3,
        on_event=lambda e: pieces.append(e["piece"]) if e["event"] == "text" else None,
    )
    assert len(report.texts) == 2 and report.texts[0] == report.texts[1]
    assert all(1 <= len(r.ids) <= 3 for r in report.results)
    assert len("".join(pieces)) == len("".join(report.texts))
