"""What a program has to know that runs a bundle's engine without this package: for its manifest and its model file."""

from __future__ import annotations

from qvec_deploy.bench.results import Model
from qvec_deploy.bundle.manifest import Interface, TensorSpec
from qvec_deploy.io.files import canonical_json
from qvec_deploy.planner import Plan
from qvec_deploy.runtimes.engine_files import METADATA_PREFIX, MODEL_FILE, PREPROCESSING_KEY, WEIGHTS_FILE
from qvec_deploy.runtimes.graph import INPUT, OUTPUT
from qvec_deploy.runtimes.registry import find_runtime


def model_of(plan: Plan, class_names: tuple[str, ...] = ()) -> Model:
    """What the engine takes and gives.

    Args:
        class_names: Names by label, where the plan has none.
    """
    config = {
        key: list(value) if isinstance(value, tuple) else value for key, value in plan.architecture.data_config.items()
    }
    return Model(
        name=plan.architecture.name,
        args=dict(plan.recipe.receiver.model_args),
        classes=plan.architecture.classes,
        input_shape=plan.architecture.input_shape,
        data_config=config,
        class_names=class_names or plan.class_names.names,
        preprocessing_from=dict(plan.images.origins),
    )


def interface_of(plan: Plan) -> Interface:
    """How the engine's files are opened and run."""
    channels, height, width = plan.architecture.input_shape
    row, in_graph = find_runtime(plan.recipe.target.runtime), plan.recipe.target.preprocessing == "in_graph"
    images = TensorSpec(name=INPUT, dtype="float32", shape=("batch", channels, height, width))
    pixels = TensorSpec(name=INPUT, dtype="uint8", shape=("batch", height, width, channels))
    return Interface(
        model=MODEL_FILE,
        weights=WEIGHTS_FILE,
        input=pixels if in_graph else images,
        output=TensorSpec(name=OUTPUT, dtype="float32", shape=("batch", plan.architecture.classes)),
        session_options=dict(row.session_options),
        session_config=dict(row.session_config),
    )


def model_metadata(plan: Plan, class_names: tuple[str, ...]) -> dict[str, str]:
    """What model.onnx says about itself, by key: JSON, for programs that have the model without its manifest."""
    model = model_of(plan).model_copy(update={"class_names": class_names})
    return metadata_of(model, interface_of(plan), plan.recipe.target.threads)


def metadata_of(model: Model, interface: Interface, threads: int | None) -> dict[str, str]:
    """The same, of what a manifest says."""
    values = {
        "class_names": list(model.class_names),
        "input": interface.input.model_dump(mode="json"),
        "output": interface.output.model_dump(mode="json"),
        "session": {
            "intra_op_num_threads": threads,
            **interface.session_options,
            "config": interface.session_config,
        },
    }
    named: dict[str, object] = {PREPROCESSING_KEY: model.data_config}
    named |= {f"{METADATA_PREFIX}{name}": value for name, value in values.items()}
    return {name: canonical_json(value).decode() for name, value in named.items()}
