/* -hf ORG/NAME[:QUANT]: a model in the local Hugging Face Hub cache.
 *
 * The cache's layout is public: HUB/models--ORG--NAME/refs/main holds a revision,
 * HUB/models--ORG--NAME/snapshots/REVISION/ the files. Nothing is ever asked of the network: an engine that downloads
 * by itself is a surprise in production. What is not there ends with the exact command that brings it.
 */
#include "cli/program.h"

#include "base/file.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* $HF_HUB_CACHE, $HUGGINGFACE_HUB_CACHE, $HF_HOME/hub, $XDG_CACHE_HOME/huggingface/hub, ~/.cache/huggingface/hub. */
static char *hub_folder(void)
{
    const char *direct = getenv("HF_HUB_CACHE"), *older = getenv("HUGGINGFACE_HUB_CACHE"), *home = getenv("HF_HOME"),
               *xdg = getenv("XDG_CACHE_HOME"), *user = getenv("HOME");
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

/* The snapshot folder of models--ORG--NAME: that of refs/main, else the only one there. */
static char *snapshot_folder(const char *hub, const char *org_and_name)
{
    char *folder = NULL, *ref = NULL, *revision = NULL, *path = NULL;
    size_t len;
    headrace_error err;

    if (asprintf(&folder, "%s/models--%s", hub, org_and_name) < 0)
        return NULL;
    for (char *slash; (slash = strchr(folder + strlen(hub) + 1, '/'));) {
        char *joined = NULL;

        *slash = '\0';
        if (asprintf(&joined, "%s--%s", folder, slash + 1) < 0)
            break;
        free(folder);
        folder = joined;
    }
    if (asprintf(&ref, "%s/refs/main", folder) >= 0 && hr_file_read(ref, 256, &revision, &len, &err) == HEADRACE_OK) {
        revision[strcspn(revision, "\r\n ")] = '\0';
        if (asprintf(&path, "%s/snapshots/%s", folder, revision) >= 0 && !hr_file_is_directory(path)) {
            free(path);
            path = NULL;
        }
    }
    free(ref);
    free(revision);
    free(folder);
    return path;
}

/* The .gguf file whose name holds quant (any, when there is only one and none was asked for), lowest name first (shard
 * 1). */
static char *find_gguf(const char *folder, const char *quant)
{
    DIR *dir = opendir(folder);
    struct dirent *entry;
    char *best = NULL, *path = NULL;

    while (dir && (entry = readdir(dir))) {
        size_t len = strlen(entry->d_name);

        if (len < 5 || strcasecmp(entry->d_name + len - 5, ".gguf") != 0 ||
            (quant && !strcasestr(entry->d_name, quant)))
            continue;
        if (!best || strcmp(entry->d_name, best) < 0) {
            free(best);
            best = strdup(entry->d_name);
        }
    }
    if (dir)
        (void)closedir(dir);
    if (best && asprintf(&path, "%s/%s", folder, best) < 0)
        path = NULL;
    free(best);
    return path;
}

char *hr_hub_find(const char *reference)
{
    const char *colon = strchr(reference, ':'), *quant = colon ? colon + 1 : NULL;
    char *name = strndup(reference, colon ? (size_t)(colon - reference) : strlen(reference));
    char *hub = hub_folder(), *folder = NULL, *path = NULL, *config = NULL;

    if (!name || !hub || !strchr(name, '/') || strstr(name, "..")) {
        (void)fprintf(stderr, "headrace: -hf %s: expected ORG/NAME or ORG/NAME:QUANT\n", reference);
        goto done;
    }
    folder = snapshot_folder(hub, name);
    if (folder && !quant && asprintf(&config, "%s/config.json", folder) >= 0 && hr_file_exists(config)) {
        path = folder;
        folder = NULL;
    } else if (folder) {
        path = find_gguf(folder, quant);
    }
    if (!path) {
        (void)fprintf(stderr, "headrace: %s is not in the Hub cache %s. This brings it:\n\n  hf download %s", reference,
                      hub, name);
        if (quant)
            (void)fprintf(stderr, " --include '*%s*.gguf'", quant);
        (void)fputs("\n\n", stderr);
    }
done:
    free(config);
    free(folder);
    free(hub);
    free(name);
    return path;
}
