/* -hf ORG/NAME[:QUANT]: a model in the local Hugging Face Hub cache.
 *
 * The cache's layout is public: HUB/models--ORG--NAME/refs/main holds a revision,
 * HUB/models--ORG--NAME/snapshots/REVISION/ the files. Nothing is ever asked of the network: an engine that downloads
 * by itself is a surprise in production. What is not there ends with the exact command that brings it.
 */
#include "cli/program.h"

#include "base/file.h"

#include <ctype.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* An environment variable; empty counts as unset. */
static const char *setting(const char *name)
{
    const char *text = getenv(name);

    return text && *text ? text : NULL;
}

/* $HF_HUB_CACHE, $HUGGINGFACE_HUB_CACHE, $HF_HOME/hub, $XDG_CACHE_HOME/huggingface/hub, ~/.cache/huggingface/hub. */
static char *hub_folder(void)
{
    const char *direct = setting("HF_HUB_CACHE"), *older = setting("HUGGINGFACE_HUB_CACHE"), *home = setting("HF_HOME"),
               *xdg = setting("XDG_CACHE_HOME"), *user = setting("HOME");
    char *path = NULL;
    int n;

    if (direct || older)
        return strdup(direct ? direct : older);
    if (home)
        n = asprintf(&path, "%s/hub", home);
    else if (xdg)
        n = asprintf(&path, "%s/huggingface/hub", xdg);
    else
        n = asprintf(&path, "%s/.cache/huggingface/hub", user ? user : ".");
    return n < 0 ? NULL : path;
}

/* The only entry of HUB/models--…/snapshots, for a cache without refs/main (a download of one revision). */
static char *only_snapshot(const char *folder)
{
    char *snapshots = NULL, *found = NULL;
    struct dirent *entry;
    uint32_t n = 0;
    DIR *dir;

    if (asprintf(&snapshots, "%s/snapshots", folder) < 0)
        return NULL;
    dir = opendir(snapshots);
    while (dir && (entry = readdir(dir))) {
        if (entry->d_name[0] == '.')
            continue;
        free(found);
        if (asprintf(&found, "%s/%s", snapshots, entry->d_name) < 0)
            found = NULL;
        n++;
    }
    if (dir)
        (void)closedir(dir);
    free(snapshots);
    if (n != 1) {
        free(found);
        found = NULL;
    }
    return found;
}

/* The snapshot folder of models--ORG--NAME: that of refs/main, else the only one there. */
static char *snapshot_folder(const char *hub, const char *org_and_name)
{
    size_t org_len = strcspn(org_and_name, "/"), len;
    char *folder = NULL, *ref = NULL, *revision = NULL, *path = NULL;
    headrace_error err;

    if (asprintf(&folder, "%s/models--%.*s--%s", hub, (int)org_len, org_and_name, org_and_name + org_len + 1) < 0)
        return NULL;
    if (asprintf(&ref, "%s/refs/main", folder) < 0)
        ref = NULL;
    if (ref && hr_file_read(ref, 256, &revision, &len, &err) == HEADRACE_OK) {
        revision[strcspn(revision, "\r\n ")] = '\0';
        if (asprintf(&path, "%s/snapshots/%s", folder, revision) < 0)
            path = NULL;
    } else {
        path = only_snapshot(folder);
    }
    if (path && !hr_file_is_directory(path)) {
        free(path);
        path = NULL;
    }
    free(ref);
    free(revision);
    free(folder);
    return path;
}

/* Whether the file name holds quant as a whole word: F16 is not in x-BF16.gguf, Q4_K is not in x-Q4_K_M.gguf. */
static bool has_word(const char *name, const char *word)
{
    size_t len = strlen(word);

    for (const char *at = name; (at = strcasestr(at, word)); at++) {
        bool begins = at == name || (!isalnum((unsigned char)at[-1]) && at[-1] != '_');

        if (begins && !isalnum((unsigned char)at[len]) && at[len] != '_')
            return true;
    }
    return false;
}

/* A language model's GGUF file; of a split one only the first part. */
static bool is_model_file(const char *name)
{
    size_t len = strlen(name);

    return len >= 5 && strcasecmp(name + len - 5, ".gguf") == 0 && strncasecmp(name, "mmproj", 6) != 0 &&
           (!strstr(name, "-of-") || strstr(name, "-00001-of-"));
}

/* A .gguf file of that quantisation (NULL: of any) and how many there are. names lists every model file. */
static char *find_gguf(const char *folder, const char *quant, hr_buffer *names, uint32_t *n_found)
{
    DIR *dir = opendir(folder);
    struct dirent *entry;
    char *path = NULL;

    *n_found = 0;
    while (dir && (entry = readdir(dir))) {
        if (!is_model_file(entry->d_name))
            continue;
        hr_buffer_printf(names, "  %s\n", entry->d_name);
        if (quant && !has_word(entry->d_name, quant))
            continue;
        free(path);
        if (asprintf(&path, "%s/%s", folder, entry->d_name) < 0)
            path = NULL;
        ++*n_found;
    }
    if (dir)
        (void)closedir(dir);
    return path;
}

/* Letters that a Hub name may have: what is printed as a command must be safe to paste. */
static bool is_hub_text(const char *text)
{
    return *text && !strstr(text, "..") &&
           text[strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                             "0123456789._-")] == '\0';
}

static bool is_reference(const char *name, const char *quant)
{
    const char *slash = strchr(name, '/');
    char org[128];

    if (!slash || (size_t)(slash - name) >= sizeof org)
        return false;
    (void)snprintf(org, sizeof org, "%.*s", (int)(slash - name), name);
    return is_hub_text(org) && is_hub_text(slash + 1) && org[0] != '-' && (!quant || is_hub_text(quant));
}

static char *find_in_snapshot(const char *folder, const char *quant, hr_buffer *names, uint32_t *n_found)
{
    char *config = NULL;
    bool is_checkpoint;

    if (asprintf(&config, "%s/config.json", folder) < 0)
        config = NULL;
    is_checkpoint = !quant && config && hr_file_exists(config);
    free(config);
    *n_found = 1;
    return is_checkpoint ? strdup(folder) : find_gguf(folder, quant, names, n_found);
}

int hr_hub_find(const char *reference, char **path)
{
    const char *colon = strchr(reference, ':'), *quant = colon ? colon + 1 : NULL;
    char *name = strndup(reference, colon ? (size_t)(colon - reference) : strlen(reference));
    char *hub = hub_folder(), *folder = NULL;
    hr_buffer names = {0};
    uint32_t n_found = 0;
    int code = HR_EXIT_FAILURE;

    *path = NULL;
    if (!name || !hub || !is_reference(name, quant)) {
        (void)fprintf(stderr, "headrace: -hf %s: expected ORG/NAME or ORG/NAME:QUANT\n", reference);
        code = HR_EXIT_USAGE;
        goto done;
    }
    folder = snapshot_folder(hub, name);
    if (folder)
        *path = find_in_snapshot(folder, quant, &names, &n_found);
    if (n_found > 1) {
        (void)fprintf(stderr,
                      "headrace: -hf %s: the Hub cache has several files that fit; name one by its "
                      "quantisation, as in %s:Q4_0:\n%s",
                      reference, name, names.at ? names.at : "");
        code = HR_EXIT_USAGE;
    } else if (!*path) {
        (void)fprintf(stderr, "headrace: %s is not in the Hub cache %s. This brings it:\n\n  hf download %s", reference,
                      hub, name);
        if (quant)
            (void)fprintf(stderr, " --include '*%s*.gguf'", quant);
        (void)fputs("\n\n", stderr);
        if (names.at)
            (void)fprintf(stderr, "What is there:\n%s", names.at);
    } else {
        code = HR_EXIT_OK;
    }
done:
    if (code != HR_EXIT_OK) {
        free(*path);
        *path = NULL;
    }
    hr_buffer_deinit(&names);
    free(folder);
    free(hub);
    free(name);
    return code;
}
