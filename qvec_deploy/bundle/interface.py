"""What a program has to know that runs a bundle's engine without this package: for its manifest and its model file."""

from __future__ import annotations

from qvec_deploy.bench.results import Model
from qvec_deploy.bundle.manifest import Interface, TensorSpec
from qvec_deploy.io.files import canonical_json
from qvec_deploy.planner import Plan
from qvec_deploy.runtimes.engine_files import MODEL_FILE, WEIGHTS_FILE
from qvec_deploy.runtimes.graph import INPUT, OUTPUT
from qvec_deploy.runtimes.registry import find_runtime


def model_of(plan: Plan, class_names: tuple[str, ...] = ()) -> Model:
    """What the engine takes and gives."""
    config = {
        key: list(value) if isinstance(value, tuple) else value for key, value in plan.architecture.data_config.items()
    }
    return Model(
        name=plan.architecture.name,
        args=dict(plan.recipe.receiver.model_args),
        classes=plan.architecture.classes,
        input_shape=plan.architecture.input_shape,
        data_config=config,
        class_names=class_names,
    )


def interface_of(plan: Plan) -> Interface:
    """How the engine's files are opened and run."""
    channels, height, width = plan.architecture.input_shape
    row = find_runtime(plan.recipe.target.runtime)
    return Interface(
        model=MODEL_FILE,
        weights=WEIGHTS_FILE,
        input=TensorSpec(name=INPUT, dtype="float32", shape=("batch", channels, height, width)),
        output=TensorSpec(name=OUTPUT, dtype="float32", shape=("batch", plan.architecture.classes)),
        session_options=dict(row.session_options),
        session_config=dict(row.session_config),
    )


def model_metadata(plan: Plan, class_names: tuple[str, ...]) -> dict[str, str]:
    """What model.onnx says about itself, by key: JSON, for programs that have the model without its manifest."""
    interface = interface_of(plan)
    values = {
        "preprocessing": model_of(plan).data_config,
        "class_names": list(class_names),
        "input": interface.input.model_dump(mode="json"),
        "output": interface.output.model_dump(mode="json"),
        "session": {
            "intra_op_num_threads": plan.recipe.target.threads,
            **interface.session_options,
            "config": interface.session_config,
        },
    }
    return {f"qvec.{name}": canonical_json(value).decode() for name, value in values.items()}
