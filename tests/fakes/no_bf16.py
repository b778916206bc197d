"""A processor without bf16, made of one that has it: as OpenVINO is on a common AVX2 server.

A pytest plugin (``-p tests.fakes.no_bf16``). OpenVINO's own cap on instruction sets reaches only a
part of its released builds, which then crash; so what it would say and do is put before it: it has
no bf16, and computes what a graph has in bf16 in float32.
"""

import openvino
from openvino import Type, opset13


def pytest_configure():
    """Put it there for the whole process."""
    get_property, compile_model = openvino.Core.get_property, openvino.Core.compile_model

    def property_without(core, *names):
        found = get_property(core, *names)
        if names[-1] == "OPTIMIZATION_CAPABILITIES":
            return [name for name in found if name != "BF16"]
        return found

    def compile_in_float32(core, model, *given, **options):
        if not isinstance(model, openvino.Model):  # a file
            model = core.read_model(model)
        without_bf16(model)
        return compile_model(core, model, *given, **options)

    openvino.Core.get_property = property_without
    openvino.Core.compile_model = compile_in_float32


def without_bf16(model):
    """Turn a model's weights and casts in bf16 into float32, in place."""
    for operation in model.get_ordered_ops():
        if (
            operation.get_type_name() == "Convert"
            and operation.get_output_element_type(0) == Type.bf16
        ):
            operation.set_attribute("destination_type", "f32")
        elif operation.get_type_name() == "Constant" and operation.get_element_type() == Type.bf16:
            value = opset13.constant(operation.get_data(dtype="float32"), Type.f32)
            for reader in operation.output(0).get_target_inputs():
                reader.replace_source_output(value.output(0))
    model.validate_nodes_and_infer_types()
