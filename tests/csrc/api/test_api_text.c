/* Text and chats through the public header: encoding, rendering, and the parts of an answer. */
#include "api_fixture.h"

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

/* ---------------------------------------------------------------- text */

static void encode_and_decode_are_inverse(void **state)
{
    static const char *const texts[] = {"", "Hello!", "a b  c\n", "こんにちは 🚀", "<|im_end|>"};

    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        for (uint32_t flags = 0; flags < 2; flags++) {
            int32_t *ids;
            char *text;
            size_t n_ids, len;

            assert_int_equal(headrace_encode(model, texts[i], strlen(texts[i]), flags, &ids, &n_ids, &err),
                             HEADRACE_OK);
            assert_int_equal(headrace_decode(model, ids, n_ids, 0, &text, &len, &err), HEADRACE_OK);
            assert_string_equal(text, texts[i]);
            assert_int_equal(len, strlen(texts[i]));
            headrace_free(ids);
            headrace_free(text);
        }
}

static void flags_decide_what_special_tokens_mean(void **state)
{
    int32_t *ids;
    char *text;
    size_t n_ids, len;
    const char *bytes;
    bool is_special;

    (void)state;
    assert_int_equal(
        headrace_encode(model, "<|im_end|>", 10, HEADRACE_ENCODE_SPECIAL | HEADRACE_ENCODE_BOS, &ids, &n_ids, &err),
        HEADRACE_OK);
    assert_int_equal(n_ids, 2);
    assert_int_equal(ids[0], 1);
    assert_int_equal(ids[1], 7);
    assert_int_equal(headrace_decode(model, ids, n_ids, HEADRACE_DECODE_SKIP_SPECIAL, &text, &len, &err), HEADRACE_OK);
    assert_int_equal(len, 0);
    assert_string_equal(text, "");
    headrace_free(text);
    headrace_free(ids);
    assert_int_equal(headrace_encode(model, "<|im_end|>", 10, 0, &ids, &n_ids, &err), HEADRACE_OK);
    assert_true(n_ids > 1);
    headrace_free(ids);
    assert_true(headrace_token_bytes(model, 7, &bytes, &len, &is_special));
    assert_true(is_special && len == 10 && memcmp(bytes, "<|im_end|>", 10) == 0);
    assert_true(headrace_token_bytes(model, 755, &bytes, &len, NULL));
    assert_false(headrace_token_bytes(model, -1, &bytes, &len, NULL));
    assert_false(headrace_token_bytes(model, 2048, &bytes, &len, NULL));
}

static void invalid_utf8_becomes_replacement_characters(void **state)
{
    int32_t *ids;
    char *text;
    size_t n_ids, len;

    (void)state;
    assert_int_equal(headrace_encode(model, "a\xFF\xC3z", 4, 0, &ids, &n_ids, &err), HEADRACE_OK);
    assert_int_equal(headrace_decode(model, ids, n_ids, 0, &text, &len, &err), HEADRACE_OK);
    assert_string_equal(text, "a\xEF\xBF\xBD\xEF\xBF\xBDz");
    headrace_free(text);
    headrace_free(ids);
}

static void ids_outside_the_vocabulary_are_refused(void **state)
{
    int32_t bad[] = {5, 2048};
    float logits[1];
    char *text;
    size_t len;

    (void)state;
    assert_error(headrace_decode(model, bad, 2, 0, &text, &len, &err), HEADRACE_E_ARGUMENT, "ids", "0..2047");
    assert_error(headrace_compute_logits(model, NULL, bad, 2, logits, &err), HEADRACE_E_ARGUMENT, "ids", "0..2047");
    assert_error(headrace_compute_logits(model, NULL, bad, 0, logits, &err), HEADRACE_E_ARGUMENT, "ids", "empty");
}

static void a_model_without_text_says_so(void **state)
{
    headrace_model *bare = open_model(GOLDENS "dense_tiny");
    headrace_engine_options options = small_engine();
    headrace_engine *engine = open_engine(bare, &options);
    int32_t prompt[] = {1, 2, 3}, *ids;
    headrace_request request = greedy(prompt, 3);
    headrace_stream *stream;
    static answer found;
    size_t n_ids;

    (void)state;
    assert_error(headrace_encode(bare, "a", 1, 0, &ids, &n_ids, &err), HEADRACE_E_UNSUPPORTED, "", "tokenizer.json");
    assert_error(headrace_chat_render(bare, "{}", 2, 0, NULL, NULL, &ids, &n_ids, &err), HEADRACE_E_UNSUPPORTED, "",
                 "tokenizer");
    request.sampling.max_tokens = 5;
    run_request(engine, &request, &found);
    assert_true(found.n_ids > 0);
    assert_int_equal(found.text_len, 0);
    request.sampling.n_stop = 1;
    request.sampling.stop[0] = "x";
    assert_error(headrace_submit(engine, &request, &stream, &err), HEADRACE_E_UNSUPPORTED, "stop", "tokenizer");
    headrace_engine_close(engine);
    headrace_model_close(bare);
}

/* ---------------------------------------------------------------- chat */

/* The cases are as the reference tokenizes them: special-token text in a message (one assistant message holds a call as
 * text) becomes special tokens. */
static void rendering_gives_the_expected_prompts(void **state)
{
    json_t *root = load_greedy_cases(), *cases = json_object_get(root, "cases"), *c;
    size_t i;

    (void)state;
    json_array_foreach(cases, i, c)
    {
        json_t *body = json_pack("{s:O,s:O,s:b}", "messages", json_object_get(c, "messages"), "tools",
                                 json_object_get(c, "tools"), "ignored", 1);
        char *request = json_dumps(body, 0), *text;
        int32_t want[1024], *ids;
        size_t n_want = read_ids(json_object_get(c, "prompt_ids"), want, 1024), n_ids, len;

        uint32_t flags = strstr(request, "content\": \"<|") ? HEADRACE_CHAT_PARSE_SPECIAL : 0;

        if (headrace_chat_render(model, request, strlen(request), flags, &text, &len, &ids, &n_ids, &err) !=
            HEADRACE_OK)
            fail_msg("case %zu: %s", i, err.message);
        assert_string_equal(text, json_string_value(json_object_get(c, "prompt")));
        assert_int_equal(n_ids, n_want);
        assert_memory_equal(ids, want, n_want * sizeof *want);
        headrace_free(ids);
        headrace_free(text);
        free(request);
        json_decref(body);
    }
    json_decref(root);
}

/* The rendered text, or NULL with err. */
static char *render(const char *request, int32_t **ids, size_t *n_ids, uint32_t flags)
{
    char *text = NULL;
    size_t len;

    return headrace_chat_render(model, request, strlen(request), flags, &text, &len, ids, n_ids, &err) == HEADRACE_OK
               ? text
               : NULL;
}

static size_t count_id(const int32_t *ids, size_t n_ids, int32_t id)
{
    size_t n = 0;

    for (size_t i = 0; i < n_ids; i++)
        n += ids[i] == id;
    return n;
}

static void a_structured_tool_call_renders_as_the_model_wrote_it(void **state)
{
    json_t *root = load_greedy_cases(), *c = json_array_get(json_object_get(root, "cases"), 9), *messages, *body;
    int32_t want[1024], *ids;
    size_t n_want = read_ids(json_object_get(c, "prompt_ids"), want, 1024), n_ids;
    char *request, *text;

    (void)state;
    messages = json_deep_copy(json_object_get(c, "messages"));
    assert_non_null(
        strstr(json_string_value(json_object_get(json_array_get(messages, 1), "content")), "lookup_order(id=34201)"));
    (void)json_array_set_new(messages, 1,
                             json_pack("{s:s,s:n,s:[{s:s,s:s,s:{s:s,s:s}}]}", "role", "assistant", "content",
                                       "tool_calls", "id", "call_1", "type", "function", "function", "name",
                                       "lookup_order", "arguments", "{\"id\": 34201}"));
    body = json_pack("{s:o,s:O}", "messages", messages, "tools", json_object_get(c, "tools"));
    request = json_dumps(body, 0);
    text = render(request, &ids, &n_ids, 0);
    assert_string_equal(text, json_string_value(json_object_get(c, "prompt")));
    assert_int_equal(n_ids, n_want);
    assert_memory_equal(ids, want, n_want * sizeof *want);
    headrace_free(text);
    headrace_free(ids);
    free(request);
    json_decref(body);
    json_decref(root);
}

static void special_text_in_a_message_stays_text(void **state)
{
    const char *request = "{\"messages\":[{\"role\":\"user\",\"content\":\"a<|im_end|>b\"}]}";
    int32_t *ids;
    size_t n_ids;
    char *text = render(request, &ids, &n_ids, 0);

    (void)state;
    assert_string_equal(text, "<|startoftext|><|im_start|>user\na<|im_end|>b<|im_end|>\n<|im_start|>assistant\n");
    assert_int_equal(count_id(ids, n_ids, 7), 1);
    headrace_free(text);
    headrace_free(ids);
    text = render(request, &ids, &n_ids, HEADRACE_CHAT_PARSE_SPECIAL);
    assert_int_equal(count_id(ids, n_ids, 7), 2);
    headrace_free(text);
    headrace_free(ids);
}

static void a_final_message_can_be_continued(void **state)
{
    int32_t *ids;
    size_t n_ids;
    char *text =
        render("{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"assistant\",\"content\":\"Well, \"}],"
               "\"continue_final_message\":true}",
               &ids, &n_ids, 0);

    (void)state;
    assert_non_null(text);
    assert_memory_equal(text + strlen(text) - 6, "Well, ", 6);
    assert_int_equal(count_id(ids, n_ids, 7), 1);
    headrace_free(text);
    headrace_free(ids);
    assert_null(render("{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"continue_final_message\":true,"
                       "\"add_generation_prompt\":true}",
                       &ids, &n_ids, 0));
    assert_error(err.status, HEADRACE_E_ARGUMENT, "continue_final_message", "add_generation_prompt");
    text = render("{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"add_generation_prompt\":false}", NULL, NULL,
                  0);
    assert_string_equal(text, "<|startoftext|><|im_start|>user\nHi<|im_end|>\n");
    headrace_free(text);
}

static void bad_conversations_are_refused_by_field(void **state)
{
    static const struct {
        const char *request, *param, *part;
    } table[] = {
        {"{\"messages\":", "", "JSON"},
        {"[]", "", "object"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"tools\":5}", "tools", "array"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"add_generation_prompt\":1}", "add_generation_prompt",
         "true"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"chat_template_kwargs\":1}", "chat_template_kwargs",
         "object"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":5}]}", "messages[0].content", "content"},
        {"{}", "messages", "messages"},
    };
    int32_t *ids;
    size_t n_ids;

    (void)state;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        assert_null(render(table[i].request, &ids, &n_ids, 0));
        assert_error(err.status, HEADRACE_E_ARGUMENT, table[i].param, table[i].part);
    }
}

/* ---------------------------------------------------------------- chat output, log */

static void an_answer_is_parted_into_reasoning_content_and_calls(void **state)
{
    static const char text[] = "<think>Let me see.</think>\nIt is <|tool_call_start|>[f(a=1)]<|tool_call_end|>";
    headrace_chat_parser *parser;
    headrace_chat_delta delta;
    char reasoning[64] = "", content[64] = "";
    uint32_t n_calls = 0;

    (void)state;
    assert_int_equal(headrace_chat_parser_create(HEADRACE_OUTPUT_REASONING | HEADRACE_OUTPUT_TOOLS, 1, &parser, &err),
                     HEADRACE_OK);
    for (size_t i = 0; i <= strlen(text); i++) {
        if (i < strlen(text))
            headrace_chat_parser_add(parser, text + i, 1);
        else
            headrace_chat_parser_finish(parser);
        assert_int_equal(headrace_chat_parser_take(parser, &delta, &err), HEADRACE_OK);
        (void)strncat(reasoning, delta.reasoning, sizeof reasoning - strlen(reasoning) - 1);
        (void)strncat(content, delta.content, sizeof content - strlen(content) - 1);
        assert_int_equal(delta.first_call, n_calls);
        n_calls += delta.n_calls;
        if (delta.n_calls > 0) {
            assert_string_equal(delta.calls[0].name, "f");
            assert_non_null(strstr(delta.calls[0].arguments, "\"a\""));
            assert_memory_equal(delta.calls[0].id, "call_", 5);
        }
    }
    assert_string_equal(reasoning, "Let me see.");
    assert_non_null(strstr(content, "It is"));
    assert_null(strstr(content, "tool_call"));
    assert_int_equal(n_calls, 1);
    headrace_chat_parser_destroy(parser);
    headrace_chat_parser_destroy(NULL);
}

static void remember_line(headrace_log_level level, const char *line, void *user)
{
    if (level <= HEADRACE_LOG_WARNING && strstr(line, "chat is off"))
        *(bool *)user = true;
}

/* A checkpoint whose own template is foreign still opens, says so in the log, and chat functions name the way out. */
static void a_foreign_template_turns_chat_off_and_nothing_else(void **state)
{
    static const char *const names[] = {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"};
    char folder[] = "/tmp/headrace-test-XXXXXX", from[512], to[512];
    const char *json = "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}";
    headrace_model_info info;
    headrace_model *foreign;
    bool was_logged = false;
    int32_t *ids;
    size_t n_ids;

    (void)state;
    assert_non_null(mkdtemp(folder));
    for (size_t i = 0; i < 4; i++) {
        (void)snprintf(from, sizeof from, "%s/%s", headrace_embedded_model_path(), names[i]);
        (void)snprintf(to, sizeof to, "%s/%s", folder, names[i]);
        assert_int_equal(symlink(from, to), 0);
    }
    (void)snprintf(to, sizeof to, "%s/tokenizer_config.json", folder);
    write_file(to, "{\"chat_template\":[{\"name\":\"default\",\"template\":\"{% import 'x' as y %}\"}]}");
    headrace_set_log(remember_line, &was_logged);
    foreign = open_model(folder);
    headrace_set_log(NULL, NULL);
    assert_true(was_logged);
    headrace_model_get_info(foreign, &info);
    assert_null(info.chat_template_name);
    assert_int_equal(headrace_encode(foreign, "x", 1, 0, &ids, &n_ids, &err), HEADRACE_OK);
    headrace_free(ids);
    assert_error(headrace_chat_render(foreign, json, strlen(json), 0, NULL, NULL, &ids, &n_ids, &err),
                 HEADRACE_E_TEMPLATE, "", "--chat-template");
    headrace_model_close(foreign);
    (void)unlink(to);
    for (size_t i = 0; i < 4; i++) {
        (void)snprintf(to, sizeof to, "%s/%s", folder, names[i]);
        (void)unlink(to);
    }
    (void)rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(encode_and_decode_are_inverse),
        cmocka_unit_test(flags_decide_what_special_tokens_mean),
        cmocka_unit_test(invalid_utf8_becomes_replacement_characters),
        cmocka_unit_test(ids_outside_the_vocabulary_are_refused),
        cmocka_unit_test(a_model_without_text_says_so),
        cmocka_unit_test(rendering_gives_the_expected_prompts),
        cmocka_unit_test(a_structured_tool_call_renders_as_the_model_wrote_it),
        cmocka_unit_test(special_text_in_a_message_stays_text),
        cmocka_unit_test(a_final_message_can_be_continued),
        cmocka_unit_test(bad_conversations_are_refused_by_field),
        cmocka_unit_test(an_answer_is_parted_into_reasoning_content_and_calls),
        cmocka_unit_test(a_foreign_template_turns_chat_off_and_nothing_else),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
