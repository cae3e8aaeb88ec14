/* Models, options, ranges, errors and numbers through the public header; text and streams have their own files. */
#include "api_fixture.h"

#include <sys/stat.h>
#include <unistd.h>

#define GOLDENS HEADRACE_TEST_DATA "/goldens/"

static headrace_model *model; /* the embedded one */

static int set_up(void **state)
{
    (void)state;
    model = open_model("tiny");
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    headrace_model_close(model);
    return 0;
}

/* ---------------------------------------------------------------- model */

static void info_tells_what_the_embedded_model_is(void **state)
{
    headrace_model_info info;

    (void)state;
    headrace_model_get_info(model, &info);
    assert_string_equal(info.architecture, "lfm2moe");
    assert_string_equal(info.format, "safetensors");
    assert_string_equal(info.name, "tiny");
    assert_string_equal(info.chat_template_name, "checkpoint");
    assert_string_equal(info.sampling_source, "generation_config.json");
    assert_non_null(strstr(info.weight_dtypes, "BF16"));
    assert_int_equal(info.n_layers, 6);
    assert_int_equal(info.n_attention_layers, 2);
    assert_int_equal(info.n_conv_layers, 4);
    assert_int_equal(info.vocab_size, 2048);
    assert_int_equal(info.n_experts, 8);
    assert_int_equal(info.n_experts_used, 2);
    assert_int_equal(info.bos_id, 1);
    assert_true(info.n_eos_ids >= 1);
    assert_int_equal(info.eos_ids[0], 7);
    assert_true(info.tokenizer_size > 1000 && info.tokenizer_size <= 2048);
    assert_true(info.n_parameters_active < info.n_parameters);
}

static json_t *describe(const headrace_model *of)
{
    char *text;
    json_error_t error;
    json_t *json;

    assert_int_equal(headrace_model_describe(of, &text, &err), HEADRACE_OK);
    json = json_loads(text, JSON_REJECT_DUPLICATES, &error);
    if (!json)
        fail_msg("description: %s at %d", error.text, error.position);
    headrace_free(text);
    return json;
}

static void describe_lists_every_tensor_and_metadata(void **state)
{
    headrace_model *gguf = open_model(GOLDENS "gguf/dense_tiny-q8_0.gguf");
    json_t *json = describe(model), *tensors = json_object_get(json, "tensors"), *metadata;
    uint64_t bytes = 0;
    headrace_model_info info;
    size_t i;
    json_t *tensor;

    (void)state;
    headrace_model_get_info(model, &info);
    json_array_foreach(tensors, i, tensor) bytes += (uint64_t)json_integer_value(json_object_get(tensor, "bytes"));
    assert_int_equal(bytes, info.weight_bytes);
    assert_int_equal(json_integer_value(json_object_get(
                         json_object_get(json_object_get(json, "metadata"), "config.json"), "num_experts")),
                     8);
    json_decref(json);

    json = describe(gguf);
    metadata = json_object_get(json, "metadata");
    assert_string_equal(json_string_value(json_object_get(metadata, "general.architecture")), "lfm2");
    assert_int_equal(json_integer_value(json_object_get(metadata, "lfm2.block_count")), 6);
    assert_string_equal(json_string_value(json_object_get(json_object_get(json, "info"), "format")), "gguf");
    json_decref(json);
    headrace_model_close(gguf);
}

static void a_model_without_weights_still_has_text(void **state)
{
    headrace_model_options options;
    headrace_model *text_only;
    headrace_engine *engine;
    int32_t *ids;
    size_t n_ids;

    (void)state;
    headrace_model_options_init(&options);
    options.path = headrace_embedded_model_path();
    options.skip_weights = true;
    assert_int_equal(headrace_model_open(&options, &text_only, &err), HEADRACE_OK);
    assert_int_equal(headrace_encode(text_only, "Hello!", 6, 0, &ids, &n_ids, &err), HEADRACE_OK);
    assert_true(n_ids > 0);
    headrace_free(ids);
    assert_error(headrace_engine_open(text_only, NULL, &engine, &err), HEADRACE_E_ARGUMENT, "model", "skip_weights");
    assert_null(engine);
    headrace_model_close(text_only);
}

static headrace_status try_open(const char *path, const char *chat_template)
{
    headrace_model_options options;
    headrace_model *opened;
    headrace_status status;

    headrace_model_options_init(&options);
    options.path = path;
    options.chat_template = chat_template;
    status = headrace_model_open(&options, &opened, &err);
    if (status != HEADRACE_OK)
        assert_null(opened);
    headrace_model_close(opened);
    return status;
}

static void what_cannot_be_opened_says_why(void **state)
{
    char folder[] = "/tmp/headrace-test-XXXXXX", path[128], template_path[128];

    (void)state;
    assert_error(try_open(NULL, NULL), HEADRACE_E_ARGUMENT, "path", "empty");
    assert_error(try_open("/nowhere/at/all", NULL), HEADRACE_E_IO, "", "/nowhere/at/all");
    assert_non_null(mkdtemp(folder));
    (void)snprintf(path, sizeof path, "%s/config.json", folder);
    (void)snprintf(template_path, sizeof template_path, "%s/template.jinja", folder);
    write_file(path, "{\"model_type\": \"lfm2\", \"architectures\": [\"Lfm2ForCausalLM\"]}");
    assert_error(try_open(folder, NULL), HEADRACE_E_MODEL, "", folder);
    assert_error(try_open("tiny", "no such template"), HEADRACE_E_ARGUMENT, "chat_template", "lfm2");
    write_file(template_path, "{% include 'other' %}");
    assert_error(try_open("tiny", template_path), HEADRACE_E_TEMPLATE, "", "include");
    assert_int_equal(try_open("tiny", "lfm2"), HEADRACE_OK);
    write_file(template_path, "{{ messages[0].content }}");
    assert_int_equal(try_open("tiny", template_path), HEADRACE_OK);
    (void)unlink(path);
    (void)unlink(template_path);
    (void)rmdir(folder);
}

static void an_option_struct_of_another_size_is_understood_or_refused(void **state)
{
    headrace_model_options options;
    headrace_model *opened;

    (void)state;
    headrace_model_options_init(&options);
    options.path = "tiny";
    options.struct_size = offsetof(headrace_model_options, chat_template); /* an older caller: path is all it knows */
    options.chat_template = "garbage beyond the end";
    assert_int_equal(headrace_model_open(&options, &opened, &err), HEADRACE_OK);
    headrace_model_close(opened);
    options.struct_size = sizeof options + 8;
    assert_error(headrace_model_open(&options, &opened, &err), HEADRACE_E_ARGUMENT, "struct_size", "init function");
    options.struct_size = 0;
    assert_error(headrace_model_open(&options, &opened, NULL) ? (err.status = HEADRACE_E_ARGUMENT) : HEADRACE_OK,
                 HEADRACE_E_ARGUMENT, "", "");
    assert_error(headrace_model_open(NULL, &opened, &err), HEADRACE_E_ARGUMENT, "model options", "NULL");
}

/* ---------------------------------------------------------------- sampling and request ranges */

static void defaults_come_from_the_model(void **state)
{
    headrace_sampling sampling;

    (void)state;
    headrace_sampling_defaults(model, &sampling);
    assert_float_equal(sampling.temperature, 0.3f, 1e-7);
    assert_float_equal(sampling.min_p, 0.15f, 1e-7);
    assert_float_equal(sampling.repetition_penalty, 1.05f, 1e-7);
    assert_float_equal(sampling.top_p, 1.0f, 0);
    assert_int_equal(sampling.top_k, 0);
    assert_int_equal(sampling.n_logprobs, -1);
}

static headrace_engine *range_engine;

#define REFUSED(statement, param, part)                                                                        \
    do {                                                                                                       \
        headrace_stream *none_;                                                                                \
        headrace_request request = greedy(prompt, 3);                                                          \
        statement;                                                                                             \
        assert_error(headrace_submit(range_engine, &request, &none_, &err), HEADRACE_E_ARGUMENT, param, part); \
        assert_null(none_);                                                                                    \
    } while (0)
#define SAMPLING_REFUSED(field, value, part) REFUSED(request.sampling.field = value, #field, part)

static void every_range_is_checked_and_named(void **state)
{
    headrace_engine_options options = small_engine();
    int32_t prompt[] = {1, 2, 3}, bad_prompt[] = {1, 2048, -1};
    char long_stop[300];
    headrace_bias bias[] = {{5, 100.5f}, {2048, 1.0f}};

    (void)state;
    range_engine = open_engine(model, &options);
    memset(long_stop, 'x', sizeof long_stop);
    long_stop[299] = '\0';
    SAMPLING_REFUSED(temperature, 3.0f, "temperature: 3 is outside 0..2");
    SAMPLING_REFUSED(temperature, -0.5f, "outside 0..2");
    SAMPLING_REFUSED(temperature, NAN, "nan");
    SAMPLING_REFUSED(top_p, 0.0f, "0");
    SAMPLING_REFUSED(top_p, 1.5f, "1.5");
    SAMPLING_REFUSED(min_p, -0.1f, "outside 0..1");
    SAMPLING_REFUSED(min_p, 1.1f, "outside 0..1");
    SAMPLING_REFUSED(repetition_penalty, 0.0f, "0");
    SAMPLING_REFUSED(repetition_penalty, 11.0f, "10");
    SAMPLING_REFUSED(presence_penalty, 2.5f, "outside -2..2");
    SAMPLING_REFUSED(frequency_penalty, -2.5f, "outside -2..2");
    SAMPLING_REFUSED(top_k, -2, "-2");
    SAMPLING_REFUSED(n_logprobs, 21, "outside -1..20");
    SAMPLING_REFUSED(n_prompt_logprobs, -2, "outside -1..20");
    SAMPLING_REFUSED(n_stop, 17, "outside 0..16");
    SAMPLING_REFUSED(n_stop_ids, 17, "outside 0..16");
    SAMPLING_REFUSED(n_bias, 1025, "outside 0..1024");
    REFUSED((request.sampling.min_tokens = 9, request.sampling.max_tokens = 8), "min_tokens", "above max_tokens 8");
    REFUSED(request.n = 129, "n", "outside 0..128");
    REFUSED(request.n_prompt_ids = 0, "prompt_ids", "empty");
    REFUSED(request.prompt_ids = bad_prompt, "prompt_ids[1]", "2048");
    REFUSED((request.sampling.n_stop_ids = 1, request.sampling.stop_ids[0] = -1), "stop_ids[0]", "-1");
    REFUSED((request.sampling.n_bias = 1, request.sampling.bias = bias), "bias[0]", "outside -100..100");
    REFUSED((request.sampling.n_bias = 1, request.sampling.bias = bias + 1), "bias[0]", "2048");
    REFUSED(request.sampling.n_bias = 1, "bias", "NULL");
    REFUSED((request.sampling.n_stop = 2, request.sampling.stop[0] = "a"), "stop[1]", "empty");
    REFUSED((request.sampling.n_stop = 1, request.sampling.stop[0] = ""), "stop[0]", "empty");
    REFUSED((request.sampling.n_stop = 1, request.sampling.stop[0] = long_stop), "stop[0]", "256");
    REFUSED((request.sampling.n_stop = 1, request.sampling.stop[0] = "\xFF"), "stop[0]", "UTF-8");
    REFUSED(request.struct_size = 1, "struct_size", "init");
    headrace_engine_close(range_engine);
}

/* ---------------------------------------------------------------- engine */

static headrace_status try_engine(const headrace_engine_options *options)
{
    headrace_engine *engine;
    headrace_status status = headrace_engine_open(model, options, &engine, &err);

    headrace_engine_close(engine);
    return status;
}

static void engine_options_out_of_range_are_refused(void **state)
{
    headrace_engine_options options = small_engine();

    (void)state;
    options.device = "abacus";
    assert_error(try_engine(&options), HEADRACE_E_UNSUPPORTED, "device", "cpu");
    options = small_engine();
    options.kv_cache_dtype = "fp3";
    assert_error(try_engine(&options), HEADRACE_E_ARGUMENT, "kv_cache_dtype", "bf16");
    options = small_engine();
    options.max_model_len = 5000;
    assert_error(try_engine(&options), HEADRACE_E_ARGUMENT, "max_model_len", "4096");
    options = small_engine();
    options.kv_cache_bytes = UINT64_C(1) << 55;
    assert_int_equal(try_engine(&options), HEADRACE_E_MEMORY);
    memset(&err, 0, sizeof err);
}

static void engine_info_and_stats_add_up(void **state)
{
    headrace_engine_options options = small_engine();
    headrace_engine *engine = open_engine(model, &options);
    headrace_engine_info info;
    headrace_stats stats;
    int32_t prompt[] = {1, 6, 314, 218, 755, 20, 7, 218, 6, 304, 218};
    headrace_request request = greedy(prompt, 11);
    static answer found;

    (void)state;
    headrace_engine_get_info(engine, &info);
    assert_string_equal(info.device, "cpu");
    assert_int_equal(info.max_model_len, 512);
    assert_int_equal(info.max_num_seqs, 8);
    assert_true(info.n_pages > 0 && info.kv_bytes <= 32u << 20);
    run_request(engine, &request, &found);
    headrace_engine_get_stats(engine, &stats);
    assert_true(stats.healthy);
    assert_int_equal(stats.generation_tokens, found.n_ids);
    assert_int_equal(stats.prompt_tokens, 11);
    assert_int_equal(stats.finished_stop, 1);
    assert_int_equal(stats.ttft_s.count, 1);
    headrace_engine_close(engine);
}

static void limits_of_admission_are_answers(void **state)
{
    headrace_engine_options options = small_engine();
    headrace_engine *engine;
    int32_t prompt[600];
    headrace_request request;
    headrace_stream *streams[8] = {0}, *refused;
    headrace_status status = HEADRACE_OK;
    size_t n = 0;

    (void)state;
    options.max_num_seqs = 1;
    options.max_num_queued_reqs = 1;
    engine = open_engine(model, &options);
    for (int i = 0; i < 600; i++)
        prompt[i] = 5;
    request = greedy(prompt, 513);
    assert_int_equal(headrace_submit(engine, &request, &refused, &err), HEADRACE_E_CONTEXT);
    request = greedy(prompt, 500);
    request.sampling.max_tokens = 13;
    assert_int_equal(headrace_submit(engine, &request, &refused, &err), HEADRACE_E_CONTEXT);
    request = greedy(prompt, 3);
    request.sampling.ignore_eos = true;
    while (n < 8 && (status = headrace_submit(engine, &request, &streams[n], &err)) == HEADRACE_OK)
        n++;
    assert_int_equal(status, HEADRACE_E_QUEUE_FULL);
    assert_true(n >= 1 && n <= 3);
    assert_int_equal(headrace_engine_drain(engine, 1000), HEADRACE_E_TIMEOUT);
    assert_int_equal(headrace_submit(engine, &request, &refused, &err), HEADRACE_E_CLOSED);
    for (size_t i = 0; i < n; i++)
        headrace_stream_cancel(streams[i]);
    assert_int_equal(headrace_engine_drain(engine, 60000000), HEADRACE_OK);
    for (size_t i = 0; i < n; i++)
        headrace_stream_destroy(streams[i]);
    headrace_engine_close(engine);
    memset(&err, 0, sizeof err);
}

/* Where a tensor's bytes begin in its file. */
static size_t tensor_offset(const char *path, const char *name)
{
    headrace_model *opened = open_model(path);
    json_t *json = describe(opened), *tensor;
    size_t i, offset = 0;

    json_array_foreach(json_object_get(json, "tensors"), i,
                       tensor) if (strcmp(json_string_value(json_object_get(tensor, "name")), name) == 0) offset =
        (size_t)json_integer_value(json_object_get(tensor, "offset"));
    json_decref(json);
    headrace_model_close(opened);
    assert_true(offset > 0);
    return offset;
}

static size_t read_whole(const char *path, char *bytes, size_t max)
{
    FILE *file = fopen(path, "rb");
    size_t len;

    assert_non_null(file);
    len = fread(bytes, 1, max, file);
    assert_true(len > 0 && len < max);
    assert_int_equal(fclose(file), 0);
    return len;
}

static void write_whole(const char *path, const char *bytes, size_t len)
{
    FILE *file = fopen(path, "wb");

    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, len, file), len);
    assert_int_equal(fclose(file), 0);
}

/* A copy of a golden in which some weights of the first layer are not numbers. */
static void make_broken_model(char *folder)
{
    static char bytes[4 << 20];
    char path[256];
    size_t offset = tensor_offset(GOLDENS "dense_tiny", "model.layers.0.feed_forward.w1.weight");
    size_t len = read_whole(GOLDENS "dense_tiny/config.json", bytes, sizeof bytes);

    assert_non_null(mkdtemp(folder));
    (void)snprintf(path, sizeof path, "%s/config.json", folder);
    write_whole(path, bytes, len);
    len = read_whole(GOLDENS "dense_tiny/model.safetensors", bytes, sizeof bytes);
    memset(bytes + offset, 0x7F, 256); /* BF16 0x7FFF is not a number */
    for (size_t at = offset; at < offset + 256; at += 2)
        bytes[at] = (char)0xFF;
    (void)snprintf(path, sizeof path, "%s/model.safetensors", folder);
    write_whole(path, bytes, len);
}

static void a_model_that_computes_nonsense_ends_with_an_error(void **state)
{
    char folder[] = "/tmp/headrace-test-XXXXXX", path[256];
    headrace_engine_options options = small_engine();
    headrace_model *broken;
    headrace_engine *engine;
    int32_t prompt[] = {1, 2, 3};
    headrace_request request = greedy(prompt, 3);
    static answer found;

    (void)state;
    make_broken_model(folder);
    broken = open_model(folder);
    options.max_model_len = 0;
    engine = open_engine(broken, &options);
    run_request(engine, &request, &found);
    assert_int_equal(found.finish, HEADRACE_FINISH_ERROR);
    assert_int_equal(found.error.status, HEADRACE_E_ENGINE);
    assert_true(found.error.message[0] != '\0');
    headrace_engine_close(engine);
    headrace_model_close(broken);
    (void)snprintf(path, sizeof path, "%s/config.json", folder);
    (void)unlink(path);
    (void)snprintf(path, sizeof path, "%s/model.safetensors", folder);
    (void)unlink(path);
    (void)rmdir(folder);
}

/* ---------------------------------------------------------------- research */

static void logits_do_not_depend_on_the_chunking(void **state)
{
    enum { N = 40 };
    static float whole[N * 2048], parts[N * 2048];
    int32_t ids[N];
    headrace_compute_options options;

    (void)state;
    for (int i = 0; i < N; i++)
        ids[i] = (i * 37 + 11) % 1000;
    assert_int_equal(headrace_compute_logits(model, NULL, ids, N, whole, &err), HEADRACE_OK);
    headrace_compute_options_init(&options);
    for (uint32_t chunk = 1; chunk < N; chunk += 6) {
        options.chunk = chunk;
        assert_int_equal(headrace_compute_logits(model, &options, ids, N, parts, &err), HEADRACE_OK);
        assert_memory_equal(whole, parts, sizeof whole);
    }
    options.exact = true;
    options.kv_cache_dtype = "f32";
    assert_int_equal(headrace_compute_logits(model, &options, ids, N, parts, &err), HEADRACE_OK);
    for (size_t i = 0; i < N * 2048; i++)
        assert_true(fabs((double)whole[i] - (double)parts[i]) < 0.5); /* bf16 keys, values and products against fp32 */
    options.kv_cache_dtype = "f31";
    assert_error(headrace_compute_logits(model, &options, ids, N, parts, &err), HEADRACE_E_ARGUMENT, "kv_cache_dtype",
                 "f31");
}

static void compare_names_every_tap_and_the_first_difference(void **state)
{
    int32_t ids[] = {1, 6, 314, 218, 755, 20, 7};
    headrace_compute_options left, right;
    json_error_t error;
    json_t *found;
    char *json;

    (void)state;
    headrace_compute_options_init(&left);
    headrace_compute_options_init(&right);
    right.chunk = 2;
    assert_int_equal(headrace_compare(model, &left, &right, ids, 7, 0.0, &json, &err), HEADRACE_OK);
    found = json_loads(json, 0, &error);
    assert_non_null(found);
    assert_true(json_is_null(json_object_get(found, "first_difference")));
    assert_true(json_array_size(json_object_get(found, "taps")) > 10);
    json_decref(found);
    headrace_free(json);
    left.exact = true;
    left.kv_cache_dtype = "f32";
    right.kv_cache_dtype = "bf16";
    assert_int_equal(headrace_compare(model, &left, &right, ids, 7, 0.0, &json, &err), HEADRACE_OK);
    found = json_loads(json, 0, &error);
    assert_true(json_is_object(json_object_get(found, "first_difference")));
    json_decref(found);
    headrace_free(json);
    assert_error(headrace_compare(model, NULL, NULL, ids, 7, -1.0, &json, &err), HEADRACE_E_ARGUMENT, "tolerance",
                 "-1");
    assert_error(headrace_compare(model, NULL, NULL, ids, 0, 0.0, &json, &err), HEADRACE_E_ARGUMENT, "ids", "empty");
    assert_null(json);
}

static void saved_tensors_are_a_safetensors_file(void **state)
{
    char path[] = "/tmp/headrace-test-XXXXXX";
    static char bytes[4096];
    const float values[] = {1.5f, -2.0f, 0.25f, 3.0f, 4.0f, 5.0f};
    headrace_named_tensor tensor = {"logits.0", values, 2, {2, 3}};
    uint64_t header_len;
    int fd = mkstemp(path);
    size_t len;

    (void)state;
    assert_true(fd >= 0);
    (void)close(fd);
    assert_int_equal(headrace_save_tensors(path, &tensor, 1, &err), HEADRACE_OK);
    len = read_whole(path, bytes, sizeof bytes);
    memcpy(&header_len, bytes, sizeof header_len);
    assert_int_equal(len, 8 + header_len + sizeof values);
    assert_memory_equal(bytes + 8 + header_len, values, sizeof values);
    bytes[8 + header_len] = '\0';
    assert_non_null(strstr(bytes + 8, "\"logits.0\""));
    assert_non_null(strstr(bytes + 8, "[2,3]"));
    (void)unlink(path);
    tensor.rank = 5;
    assert_error(headrace_save_tensors(path, &tensor, 1, &err), HEADRACE_E_ARGUMENT, "tensors", "rank");
    tensor.rank = 2;
    assert_int_equal(headrace_save_tensors("/nowhere/at/all", &tensor, 1, &err), HEADRACE_E_IO);
    memset(&err, 0, sizeof err);
}

/* ---------------------------------------------------------------- names */

static void names_and_versions_are_texts(void **state)
{
    (void)state;
    assert_string_equal(headrace_status_text(HEADRACE_OK), "ok");
    assert_string_equal(headrace_status_text(HEADRACE_E_CONTEXT), "context length exceeded");
    assert_string_equal(headrace_status_text((headrace_status)-99), "unknown status");
    assert_non_null(strchr(headrace_version(), '.'));
    assert_non_null(strstr(headrace_build_info(), "cpu: plain"));
    assert_non_null(strstr(headrace_chat_template_names(), "lfm2"));
    headrace_free(NULL);
    headrace_model_close(NULL);
    headrace_engine_close(NULL);
    headrace_stream_destroy(NULL);
    headrace_queue_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(info_tells_what_the_embedded_model_is),
        cmocka_unit_test(describe_lists_every_tensor_and_metadata),
        cmocka_unit_test(a_model_without_weights_still_has_text),
        cmocka_unit_test(what_cannot_be_opened_says_why),
        cmocka_unit_test(an_option_struct_of_another_size_is_understood_or_refused),
        cmocka_unit_test(defaults_come_from_the_model),
        cmocka_unit_test(every_range_is_checked_and_named),
        cmocka_unit_test(engine_options_out_of_range_are_refused),
        cmocka_unit_test(engine_info_and_stats_add_up),
        cmocka_unit_test(limits_of_admission_are_answers),
        cmocka_unit_test(a_model_that_computes_nonsense_ends_with_an_error),
        cmocka_unit_test(logits_do_not_depend_on_the_chunking),
        cmocka_unit_test(compare_names_every_tap_and_the_first_difference),
        cmocka_unit_test(saved_tensors_are_a_safetensors_file),
        cmocka_unit_test(names_and_versions_are_texts),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
