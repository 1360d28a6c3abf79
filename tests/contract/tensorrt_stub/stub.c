/* The nine functions that TensorRT's Python bindings link to, doing nothing: enough to import the real bindings where
 * the libraries behind them are not to be had. There is no plugin registry, and nothing can be built or run. */

#define ABSENT(name) void *name(void) { return 0; }

ABSENT(createInferBuilder_INTERNAL)
ABSENT(createInferRefitter_INTERNAL)
ABSENT(createInferRuntime_INTERNAL)
ABSENT(createNvOnnxParser_INTERNAL)
ABSENT(createNvOnnxParserRefitter_INTERNAL)
ABSENT(getBuilderPluginRegistry)
ABSENT(getPluginRegistry)

int getNvOnnxParserVersion(void) { return 0; }
_Bool initLibNvInferPlugins(void *logger, const char *library_namespace) { return 0; }
