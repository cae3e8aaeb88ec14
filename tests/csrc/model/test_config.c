/* config.json and GGUF metadata: every spelling is read, and nonsense is refused with the field and the value. */
#include "model/config.h"
#include "support/checkpoint.h"
#include "support/recipe.h"

#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static void assert_says(const headrace_error *err, const char *text)
{
    if (!strstr(err->message, text))
        fail_msg("expected \"%s\" in \"%s\"", text, err->message);
}

/* The small config with fields replaced by those of `change` (a JSON object; a value of "-" removes the field). */
static headrace_status read_changed(bool is_moe, const char *change, hr_config *out, headrace_error *err)
{
    json_t *config = json_loads(hr_test_small_config(is_moe), 0, NULL);
    json_t *changes = json_loads(change, 0, NULL), *value;
    const char *key;
    char *text;
    headrace_status status;

    assert_non_null(config);
    assert_non_null(changes);
    json_object_foreach(changes, key, value)
    {
        if (json_is_string(value) && strcmp(json_string_value(value), "-") == 0)
            (void)json_object_del(config, key);
        else
            (void)json_object_set(config, key, value);
    }
    text = json_dumps(config, 0);
    status = hr_config_from_json(text, strlen(text), "config.json", out, err);
    if (status == HEADRACE_OK)
        status = hr_config_finish(out, "config.json", err);
    free(text);
    json_decref(config);
    json_decref(changes);
    return status;
}

static hr_arch read_ok(bool is_moe, const char *change)
{
    hr_config config;
    headrace_error err = {0};

    if (read_changed(is_moe, change, &config, &err) != HEADRACE_OK)
        fail_msg("%s: %s", change, err.message);
    return config.arch;
}

/* ---------------------------------------------------------------- spellings */

static void the_width_rule_gives_the_published_widths(void **state)
{
    static const struct {
        uint64_t configured;
        bool auto_adjust;
        double multiplier;
        uint64_t multiple_of;
        uint32_t width;
    } cases[] = {
        {6656, true, 1.0, 256, 4608}, {12288, true, 1.0, 256, 8192},   {10240, true, 1.0, 256, 6912},
        {3328, true, 1.0, 256, 2304}, {10752, false, 1.0, 256, 10752}, {240, true, 1.0, 32, 160},
        {360, true, 1.5, 64, 384},    {7, false, 3.0, 256, 7},
    };
    uint32_t width;

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_true(
            hr_ffn_width(cases[i].configured, cases[i].auto_adjust, cases[i].multiplier, cases[i].multiple_of, &width));
        assert_int_equal(width, cases[i].width);
    }
    assert_false(hr_ffn_width(1, true, 0.001, 256, &width));
    assert_false(hr_ffn_width(1 << 20, true, 1000, 256, &width));
}

static void both_spellings_of_each_field_are_read(void **state)
{
    (void)state;
    assert_int_equal(read_ok(false, "{\"num_attention_heads\":\"-\",\"num_heads\":4}").n_heads, 4);
    assert_int_equal(read_ok(false, "{\"layer_types\":\"-\",\"full_attn_idxs\":[0,1]}").n_attention_layers, 2);
    assert_int_equal(read_ok(false, "{\"block_ff_dim\":96}").ffn_dim, 96); /* wins over intermediate_size */
    assert_int_equal(read_ok(false, "{\"block_auto_adjust_ff_dim\":\"-\",\"intermediate_size\":384}").ffn_dim, 256);
    assert_int_equal(read_ok(true, "{\"block_auto_adjust_ff_dim\":true}").ffn_dim, 64); /* expert models: as it is */
    assert_true(read_ok(false, "{\"norm_eps\":\"-\",\"block_norm_eps\":0.001}").norm_eps == 0.001F);
    assert_true(
        read_ok(false, "{\"rope_theta\":\"-\",\"rope_parameters\":{\"rope_theta\":5e5,\"rope_type\":\"default\"}}")
            .rope_theta == 5e5F);
    assert_true(read_ok(false, "{\"rope_theta\":1000000}").rope_theta == 1e6F); /* an integer is a number */
    assert_int_equal(read_ok(false, "{\"rope_scaling\":null}").conv_length, 3);
    assert_int_equal(read_ok(false, "{\"head_dim\":16}").head_dim, 16);
    assert_int_equal(read_ok(false, "{\"pad_token_id\":null,\"bos_token_id\":\"-\"}").pad_id, -1);
    assert_int_equal(read_ok(false, "{\"conv_L_cache\":8}").conv_length, 8);
    assert_int_equal(read_ok(false, "{\"conv_L_cache\":2}").conv_length, 2);
    assert_true(read_ok(true, "{}").norm_topk_prob);
    assert_false(read_ok(true, "{\"norm_topk_prob\":false}").norm_topk_prob);
    assert_false(read_ok(true, "{\"use_expert_bias\":false}").use_expert_bias);
    assert_true(read_ok(true, "{\"routed_scaling_factor\":2.5}").routed_scaling_factor == 2.5F);
}

static void the_second_spelling_of_tying_wins(void **state)
{
    static const struct {
        const char *change;
        bool is_tied;
    } cases[] = {{"{}", true},
                 {"{\"tie_word_embeddings\":false}", false},
                 {"{\"tie_embedding\":false}", false},
                 {"{\"tie_word_embeddings\":false,\"tie_embedding\":true}", true},
                 {"{\"tie_word_embeddings\":true,\"tie_embedding\":false}", false}};

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hr_config config;

        assert_int_equal(read_changed(false, cases[i].change, &config, NULL), HEADRACE_OK);
        assert_int_equal(config.is_tied, cases[i].is_tied);
    }
}

static void end_ids_are_a_number_or_a_list(void **state)
{
    hr_arch arch = read_ok(false, "{\"eos_token_id\":[7,9]}");

    (void)state;
    assert_int_equal(arch.n_eos_ids, 3);
    assert_int_equal(arch.eos_ids[1], 9);
    assert_int_equal(arch.eos_ids[2], 2); /* <|endoftext|> joins <|im_end|> */
    assert_int_equal(read_ok(false, "{\"eos_token_id\":[2,7]}").n_eos_ids, 2);
    assert_int_equal(read_ok(false, "{\"eos_token_id\":5}").n_eos_ids,
                     1); /* another tokenizer: 2 is an ordinary token */
}

/* ---------------------------------------------------------------- refusals */

static void nonsense_is_refused_with_field_and_value(void **state)
{
    static const struct {
        bool is_moe;
        const char *change, *message;
    } cases[] = {
        {false, "{\"model_type\":\"lfm3\"}",
         "model_type 'lfm3' is not supported (LFM3 is another architecture); lfm2 and lfm2_moe are"},
        {false, "{\"model_type\":\"lfm3_vl\"}", "LFM3 is another architecture"},
        {false, "{\"model_type\":\"lfm2_vl\"}", "model_type 'lfm2_vl' is not supported (a vision-language model)"},
        {false, "{\"model_type\":\"lfm2-vl\"}", "a vision-language model"},
        {false, "{\"model_type\":\"llama\"}", "model_type 'llama' is not supported (another architecture)"},
        {false, "{\"model_type\":3}", "field 'model_type' is 3, expected a text"},
        {false, "{\"model_type\":\"-\"}", "field 'model_type' is missing"},
        {false, "{\"architectures\":[\"Lfm2BidirectionalModel\"]}",
         "field 'architectures' is [\"Lfm2BidirectionalModel\"]"},
        {false, "{\"architectures\":[\"Lfm2MoeForCausalLM\"]}", "expected Lfm2ForCausalLM"},
        {false, "{\"quantization_config\":{\"quant_method\":\"fp8\"}}", "field 'quantization_config'"},
        {false, "{\"vocab_size\":\"-\"}", "field 'vocab_size' is missing"},
        {false, "{\"vocab_size\":0}", "field 'vocab_size' is 0, expected a whole number from 1"},
        {false, "{\"vocab_size\":\"16\"}", "field 'vocab_size' is \"16\""},
        {false, "{\"hidden_size\":-32}", "field 'hidden_size' is -32"},
        {false, "{\"hidden_size\":9223372036854775807}", "field 'hidden_size' is 9223372036854775807"},
        {false, "{\"hidden_size\":32.5}", "field 'hidden_size' is 32.5"},
        {false, "{\"hidden_size\":30}", "'hidden_size' 30 and 'num_attention_heads' 4 give no whole head size"},
        {false, "{\"hidden_size\":\"-\"}", "field 'hidden_size' is missing"},
        {false, "{\"num_hidden_layers\":0}", "field 'num_hidden_layers' is 0"},
        {false, "{\"num_hidden_layers\":257}",
         "field 'num_hidden_layers' is 257, expected a whole number from 1 to 256"},
        {false, "{\"num_hidden_layers\":3}", "field 'layer_types' has 2 entries, expected num_hidden_layers = 3"},
        {false, "{\"num_attention_heads\":\"-\"}", "field 'num_attention_heads' is missing"},
        {false, "{\"num_key_value_heads\":3}", "4 query heads are no multiple of 3 key-value heads"},
        {false, "{\"num_key_value_heads\":\"-\"}", "field 'num_key_value_heads' is missing"},
        {false, "{\"head_dim\":7}", "a head size of 7 is odd"},
        {false, "{\"head_dim\":0}", "field 'head_dim' is 0"},
        {false, "{\"layer_types\":\"-\"}", "field 'layer_types' (or 'full_attn_idxs') is missing"},
        {false, "{\"layer_types\":[\"conv\",\"sliding_attention\"]}",
         "field 'layer_types[1]' is \"sliding_attention\""},
        {false, "{\"layer_types\":[\"conv\",1]}", "field 'layer_types[1]' is 1"},
        {false, "{\"layer_types\":[\"conv\",\"conv\"]}", "the layer list has no attention layer"},
        {false, "{\"layer_types\":\"-\",\"full_attn_idxs\":[2]}",
         "field 'full_attn_idxs[0]' is 2, expected a whole number from 0 to 1"},
        {false, "{\"layer_types\":\"-\",\"full_attn_idxs\":[-1]}", "field 'full_attn_idxs[0]' is -1"},
        {false, "{\"layer_types\":\"-\",\"full_attn_idxs\":3}", "field 'full_attn_idxs' is 3"},
        {false, "{\"intermediate_size\":\"-\"}", "field 'intermediate_size' is missing"},
        {false, "{\"intermediate_size\":1e9}", "field 'intermediate_size' is 1000000000.0"},
        {false, "{\"block_auto_adjust_ff_dim\":1}", "field 'block_auto_adjust_ff_dim' is 1, expected true or false"},
        {false, "{\"block_multiple_of\":0}", "field 'block_multiple_of' is 0"},
        {false, "{\"block_ffn_dim_multiplier\":-1}", "field 'block_ffn_dim_multiplier' is -1"},
        {false, "{\"block_auto_adjust_ff_dim\":true,\"intermediate_size\":1}",
         "a width from 1 to 1048576 after adjustment"},
        {false, "{\"conv_L_cache\":1}", "field 'conv_L_cache' is 1, expected a whole number from 2 to 8"},
        {false, "{\"conv_L_cache\":9}", "field 'conv_L_cache' is 9"},
        {false, "{\"conv_L_cache\":\"-\"}", "field 'conv_L_cache' is missing"},
        {false, "{\"conv_bias\":\"no\"}", "field 'conv_bias' is \"no\""},
        {false, "{\"norm_eps\":\"-\"}", "field 'norm_eps' is missing"},
        {false, "{\"norm_eps\":0}", "field 'norm_eps' is 0, expected a number from 1e-12 to 1"},
        {false, "{\"rope_theta\":\"-\"}", "field 'rope_theta' (or 'rope_parameters.rope_theta') is missing"},
        {false, "{\"rope_theta\":-1}", "field 'rope_theta' is -1"},
        {false, "{\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4}}", "field 'rope_type' is \"yarn\""},
        {false, "{\"rope_scaling\":{\"type\":\"linear\"}}", "field 'rope_type' is \"linear\""},
        {false, "{\"rope_scaling\":{\"factor\":4}}", "field 'rope_scaling' is {\"factor\":4}"},
        {false, "{\"max_position_embeddings\":0}", "field 'max_position_embeddings' is 0"},
        {false, "{\"max_position_embeddings\":\"-\"}", "field 'max_position_embeddings' is missing"},
        {false, "{\"tie_embedding\":0}", "field 'tie_embedding' is 0"},
        {false, "{\"bos_token_id\":16}", "field 'bos_token_id' is 16, expected a whole number from 0 to 15"},
        {false, "{\"eos_token_id\":-7}", "field 'eos_token_id' is -7"},
        {false, "{\"eos_token_id\":[7,\"x\"]}", "field 'eos_token_id' is \"x\""},
        {false, "{\"eos_token_id\":[0,1,3,4,5,6,8,9,10]}", "more than 8 end-of-sequence ids"},
        {true, "{\"num_experts\":\"-\"}", "field 'num_experts' is missing"},
        {true, "{\"num_experts\":0}", "field 'num_experts' is 0"},
        {true, "{\"num_experts\":513}", "field 'num_experts' is 513, expected a whole number from 1 to 512"},
        {true, "{\"num_experts_per_tok\":5}", "5 experts a token, but there are only 4"},
        {true, "{\"num_experts_per_tok\":0}", "field 'num_experts_per_tok' is 0"},
        {true, "{\"num_dense_layers\":3}", "3 leading dense layers, but there are only 2 layers"},
        {true, "{\"num_dense_layers\":\"-\"}", "field 'num_dense_layers' is missing"},
        {true, "{\"moe_intermediate_size\":\"-\"}", "field 'moe_intermediate_size' is missing"},
        {true, "{\"routed_scaling_factor\":\"big\"}", "field 'routed_scaling_factor' is \"big\""},
        {true, "{\"use_expert_bias\":1}", "field 'use_expert_bias' is 1"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hr_config config;
        headrace_error err = {0};

        if (read_changed(cases[i].is_moe, cases[i].change, &config, &err) != HEADRACE_E_MODEL)
            fail_msg("not refused: %s", cases[i].change);
        assert_says(&err, cases[i].message);
        assert_says(&err, "config.json: ");
    }
}

static void text_that_is_no_json_object_is_refused(void **state)
{
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"", "config.json: byte 0: not valid JSON"},
        {"{\"a\":1", "not valid JSON"},
        {"[]", "expected a JSON object"},
        {"{\"vocab_size\":1,\"vocab_size\":2}", "duplicate object key"},
        {"{\"a\":\"\xFF\"}", "not valid JSON"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hr_config config;
        headrace_error err = {0};

        assert_int_equal(hr_config_from_json(cases[i].text, strlen(cases[i].text), "config.json", &config, &err),
                         HEADRACE_E_MODEL);
        assert_says(&err, cases[i].message);
    }
}

/* ---------------------------------------------------------------- GGUF metadata */

/* One key of the small model left out and, unless value is NULL, written again with another value. */
static headrace_status read_keys(bool is_moe, const char *suffix, uint32_t type, const void *value, size_t len,
                                 hr_config *out, headrace_error *err)
{
    const char *without[] = {suffix, NULL};
    char key[96];
    hr_test_gguf made = {0};
    hr_buffer file = {0};
    hr_gguf gguf;
    headrace_status status;

    hr_test_gguf_small_keys(&made, is_moe, without);
    (void)snprintf(key, sizeof key, "%s.%s", is_moe ? "lfm2moe" : "lfm2", suffix);
    if (strchr(suffix, ':')) /* a full key */
        (void)snprintf(key, sizeof key, "%s", suffix + 1);
    if (value)
        hr_test_gguf_raw(&made, key, type, value, len);
    hr_test_gguf_finish(&made, &file);
    assert_int_equal(hr_gguf_parse((unsigned char *)file.at, file.len, "w.gguf", &gguf, err), HEADRACE_OK);
    status = hr_config_from_gguf(&gguf, out, err);
    if (status == HEADRACE_OK)
        status = hr_config_finish(out, "w.gguf", err);
    hr_gguf_close(&gguf);
    hr_buffer_deinit(&file);
    return status;
}

static void damaged_metadata_is_refused_with_key_and_value(void **state)
{
    static const struct {
        bool is_moe;
        const char *suffix;
        uint32_t type; /* 4 u32, 6 f32, 7 bool, 100: absent */
        uint32_t value;
        const char *message;
    } cases[] = {
        {false, "block_count", 100, 0, "key 'lfm2.block_count' is missing"},
        {false, "block_count", 4, 0, "key 'lfm2.block_count' is 0, expected 1 to 256"},
        {false, "block_count", 4, 3, "expected an array of 3 integers, one a layer (found 2)"},
        {false, "block_count", 6, 2, "key 'lfm2.block_count', byte"},
        {false, "context_length", 100, 0, "key 'lfm2.context_length' is missing"},
        {false, "embedding_length", 4, 1u << 30, "key 'lfm2.embedding_length' is 1073741824"},
        {false, "feed_forward_length", 100, 0, "key 'lfm2.feed_forward_length' is missing"},
        {false, "feed_forward_length", 4, 0, "key 'lfm2.feed_forward_length' is 0"},
        {false, "attention.head_count", 4, 5, "embedding_length 32 and attention.head_count 5 give no whole head size"},
        {false, "attention.head_count_kv", 100, 0, "key 'lfm2.attention.head_count_kv' is missing"},
        {false, "attention.head_count_kv", 4, 2, "key 'lfm2.attention.head_count_kv', byte"},
        {false, "shortconv.l_cache", 4, 9, "key 'lfm2.shortconv.l_cache' is 9, expected 2 to 8"},
        {false, "shortconv.l_cache", 100, 0, "key 'lfm2.shortconv.l_cache' is missing"},
        {false, "attention.layer_norm_rms_epsilon", 6, 0x7FC00000, "not a finite number"},
        {false, "attention.layer_norm_rms_epsilon", 6, 0, "key 'lfm2.attention.layer_norm_rms_epsilon' is 0"},
        {false, "rope.freq_base", 100, 0, "key 'lfm2.rope.freq_base' is missing"},
        {false, "vocab_size", 100, 0, "key 'lfm2.vocab_size' is missing, and no tensor 'token_embd.weight' tells it"},
        {false, "attention.key_length", 4, 0, "key 'lfm2.attention.key_length' is 0"},
        {false, "attention.value_length", 4, 16, "key 'lfm2.attention.value_length' is 16, expected 8 to 8"},
        {false, "rope.dimension_count", 4, 4, "key 'lfm2.rope.dimension_count' is 4"},
        {false, "attention.causal", 7, 0, "key 'lfm2.attention.causal' is false: embedding models"},
        {false, "attention.sliding_window", 4, 30, "key 'lfm2.attention.sliding_window' is 30"},
        {false, ":tokenizer.ggml.eos_token_id", 4, 16,
         "key 'tokenizer.ggml.eos_token_id' is 16, outside the vocabulary of 16"},
        {false, ":tokenizer.ggml.bos_token_id", 6, 1, "key 'tokenizer.ggml.bos_token_id', byte"},
        {true, "expert_count", 100, 0, "key 'lfm2moe.expert_count' is missing"},
        {true, "expert_used_count", 4, 9, "9 experts a token, but there are only 4"},
        {true, "expert_gating_func", 4, 1, "key 'lfm2moe.expert_gating_func' is 1, expected 2 (sigmoid)"},
        {true, "leading_dense_block_count", 4, 3, "3 leading dense layers"},
        {true, "expert_feed_forward_length", 100, 0, "key 'lfm2moe.expert_feed_forward_length' is missing"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hr_config config;
        headrace_error err = {0};

        if (read_keys(cases[i].is_moe, cases[i].suffix, cases[i].type, cases[i].type == 100 ? NULL : &cases[i].value,
                      cases[i].type == 7 ? 1 : 4, &config, &err) != HEADRACE_E_MODEL)
            fail_msg("not refused: %s", cases[i].message);
        assert_says(&err, cases[i].message);
        assert_says(&err, "w.gguf");
    }
}

static void a_layer_list_with_different_heads_is_refused(void **state)
{
    static const struct {
        uint32_t heads[2];
        const char *message;
    } cases[] = {{{0, 0}, "has no attention layer"},
                 {{1, 2}, "layer 1 has 2 key-value heads"},
                 {{0, 2000}, "layer 1 has 2000 key-value heads"},
                 {{0, UINT32_MAX}, "layer 1 has 4294967295"}};

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        unsigned char value[4 + 8 + 8] = {4, 0, 0, 0, 2};
        hr_config config;
        headrace_error err = {0};

        memcpy(value + 12, cases[i].heads, 8);
        assert_int_equal(read_keys(false, "attention.head_count_kv", 9, value, sizeof value, &config, &err),
                         HEADRACE_E_MODEL);
        assert_says(&err, cases[i].message);
    }
}

static void an_expert_width_a_layer_is_read(void **state)
{
    const unsigned char value[] = {4, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 48, 0, 0, 0};
    hr_config config;

    (void)state;
    assert_int_equal(read_keys(true, "expert_feed_forward_length", 9, value, sizeof value, &config, NULL), HEADRACE_OK);
    assert_int_equal(config.arch.expert_ffn_dim, 48);
}

static void foreign_gguf_files_are_refused_by_name(void **state)
{
    static const struct {
        const char *name, *message;
    } cases[] = {
        {"lfm3", "general.architecture 'lfm3' is not supported (LFM3 is another architecture); lfm2 and lfm2moe are"},
        {"llama", "general.architecture 'llama' is not supported (another architecture)"},
        {"clip", "a vision or audio projector, not a language model"},
        {"", "general.architecture '' is not supported"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hr_test_gguf made = {0};
        hr_buffer file = {0};
        hr_gguf gguf;
        hr_config config;
        headrace_error err = {0};

        hr_test_gguf_str(&made, "general.architecture", cases[i].name);
        hr_test_gguf_finish(&made, &file);
        assert_int_equal(hr_gguf_parse((unsigned char *)file.at, file.len, "w.gguf", &gguf, &err), HEADRACE_OK);
        assert_int_equal(hr_config_from_gguf(&gguf, &config, &err), HEADRACE_E_MODEL);
        assert_says(&err, cases[i].message);
        hr_gguf_close(&gguf);
        hr_buffer_deinit(&file);
    }
}

/* ---------------------------------------------------------------- parameters */

static void released_shapes_have_the_published_numbers_of_parameters(void **state)
{
    static const struct {
        hr_arch arch;
        uint64_t total, active;
    } cases[] = {
        {{.n_layers = 16,
          .n_attention_layers = 6,
          .n_conv_layers = 10,
          .hidden_size = 1024,
          .n_heads = 16,
          .n_kv_heads = 8,
          .head_dim = 64,
          .ffn_dim = 4608,
          .conv_length = 3,
          .vocab_size = 65536},
         354483968,
         354483968},
        {{.n_layers = 16,
          .n_attention_layers = 6,
          .n_conv_layers = 10,
          .hidden_size = 2048,
          .n_heads = 32,
          .n_kv_heads = 8,
          .head_dim = 64,
          .ffn_dim = 8192,
          .conv_length = 3,
          .vocab_size = 65536},
         1170340608,
         1170340608},
        {{.n_layers = 30,
          .n_attention_layers = 8,
          .n_conv_layers = 22,
          .hidden_size = 2048,
          .n_heads = 32,
          .n_kv_heads = 8,
          .head_dim = 64,
          .ffn_dim = 10752,
          .conv_length = 3,
          .vocab_size = 65536},
         2569272320,
         2569272320},
        {{.n_layers = 24,
          .n_attention_layers = 6,
          .n_conv_layers = 18,
          .hidden_size = 2048,
          .n_heads = 32,
          .n_kv_heads = 8,
          .head_dim = 64,
          .ffn_dim = 7168,
          .conv_length = 3,
          .vocab_size = 65536,
          .n_experts = 32,
          .n_experts_used = 4,
          .expert_ffn_dim = 1792,
          .n_dense_layers = 2,
          .use_expert_bias = true},
         8339930560,
         1557740992},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint64_t total, active;

        hr_arch_count_parameters(&cases[i].arch, true, false, &total, &active);
        assert_int_equal(total, cases[i].total);
        assert_int_equal(active, cases[i].active);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_width_rule_gives_the_published_widths),
        cmocka_unit_test(both_spellings_of_each_field_are_read),
        cmocka_unit_test(the_second_spelling_of_tying_wins),
        cmocka_unit_test(end_ids_are_a_number_or_a_list),
        cmocka_unit_test(nonsense_is_refused_with_field_and_value),
        cmocka_unit_test(text_that_is_no_json_object_is_refused),
        cmocka_unit_test(damaged_metadata_is_refused_with_key_and_value),
        cmocka_unit_test(a_layer_list_with_different_heads_is_refused),
        cmocka_unit_test(an_expert_width_a_layer_is_read),
        cmocka_unit_test(foreign_gguf_files_are_refused_by_name),
        cmocka_unit_test(released_shapes_have_the_published_numbers_of_parameters),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
