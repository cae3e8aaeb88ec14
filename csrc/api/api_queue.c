/* Many streams, one waiter.
 *
 * The engine thread announces a stream (notify) and, at the end of the step, writes each queue's eventfd once (flush).
 * In between, any other thread may take the stream's events, destroy it, and destroy the queue. So the engine thread
 * holds links (api.h), never streams, and everything it does to a stream or queue it does under the lock of the
 * headrace_engine, under which a stream unties its link. Links are recycled: a late announcement for a recycled one
 * only wakes its new stream once for nothing.
 *
 * Order of locks: engine, then queue.
 */
#include "api/api.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct headrace_queue {
    int fd;
    pthread_mutex_t lock;
    hr_stream_link *first, *last; /* streams with news, oldest first */
    bool is_written;              /* the eventfd is readable, or take is about to look */
};

headrace_status headrace_queue_create(headrace_queue **out, headrace_error *err)
{
    headrace_queue *queue = calloc(1, sizeof *queue);

    *out = NULL;
    if (!queue)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for a queue");
    queue->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (queue->fd < 0) {
        free(queue);
        return hr_fail(err, HEADRACE_E_IO, "eventfd: %s", strerror(errno));
    }
    (void)pthread_mutex_init(&queue->lock, NULL);
    *out = queue;
    return HEADRACE_OK;
}

void headrace_queue_destroy(headrace_queue *queue)
{
    if (!queue)
        return;
    (void)close(queue->fd);
    (void)pthread_mutex_destroy(&queue->lock);
    free(queue);
}

int headrace_queue_fd(const headrace_queue *queue)
{
    return queue->fd;
}

/* The counter cannot overflow (it is written only after it was read), so the write cannot fail for that. */
static void write_fd(headrace_queue *queue)
{
    uint64_t one = 1;
    ssize_t n = write(queue->fd, &one, sizeof one);

    (void)n;
}

size_t headrace_queue_take(headrace_queue *queue, headrace_stream **streams, size_t max)
{
    uint64_t count;
    size_t n = 0;
    ssize_t got;

    (void)pthread_mutex_lock(&queue->lock);
    got = read(queue->fd, &count, sizeof count);
    (void)got;
    queue->is_written = false;
    while (queue->first && n < max) {
        hr_stream_link *link = queue->first;

        queue->first = link->next_ready;
        if (!queue->first)
            queue->last = NULL;
        link->is_ready = false;
        streams[n++] = link->stream;
    }
    if (queue->first) { /* more than max: the descriptor stays readable */
        queue->is_written = true;
        write_fd(queue);
    }
    (void)pthread_mutex_unlock(&queue->lock);
    return n;
}

static void append_ready(headrace_queue *queue, hr_stream_link *link)
{
    (void)pthread_mutex_lock(&queue->lock);
    if (!link->is_ready) {
        link->is_ready = true;
        link->next_ready = NULL;
        if (queue->last)
            queue->last->next_ready = link;
        else
            queue->first = link;
        queue->last = link;
    }
    (void)pthread_mutex_unlock(&queue->lock);
}

static void remove_ready(headrace_queue *queue, hr_stream_link *link)
{
    (void)pthread_mutex_lock(&queue->lock);
    if (link->is_ready) {
        hr_stream_link *before = NULL;

        for (hr_stream_link *at = queue->first; at != link; at = at->next_ready)
            before = at;
        if (before)
            before->next_ready = link->next_ready;
        else
            queue->first = link->next_ready;
        if (queue->last == link)
            queue->last = before;
        link->is_ready = false;
    }
    (void)pthread_mutex_unlock(&queue->lock);
}

hr_stream_link *hr_stream_link_acquire(headrace_engine *engine)
{
    hr_stream_link *link;

    (void)pthread_mutex_lock(&engine->lock);
    link = engine->unused;
    if (link) {
        engine->unused = link->next_unused;
    } else {
        link = calloc(1, sizeof *link);
        if (link) {
            link->engine = engine;
            link->next_link = engine->links;
            engine->links = link;
        }
    }
    if (link)
        link->is_early = false;
    (void)pthread_mutex_unlock(&engine->lock);
    return link;
}

static void wake_queue(headrace_queue *queue)
{
    (void)pthread_mutex_lock(&queue->lock);
    if (queue->first && !queue->is_written) {
        queue->is_written = true;
        write_fd(queue);
    }
    (void)pthread_mutex_unlock(&queue->lock);
}

void hr_stream_link_open(hr_stream_link *link, headrace_stream *stream, headrace_queue *queue)
{
    (void)pthread_mutex_lock(&link->engine->lock);
    link->stream = stream;
    link->queue = queue;
    if (link->is_early) {
        append_ready(queue, link);
        wake_queue(queue);
    }
    (void)pthread_mutex_unlock(&link->engine->lock);
}

void hr_stream_link_release(hr_stream_link *link)
{
    headrace_engine *engine;

    if (!link)
        return;
    engine = link->engine;
    (void)pthread_mutex_lock(&engine->lock);
    if (link->queue)
        remove_ready(link->queue, link);
    link->stream = NULL;
    link->queue = NULL;
    link->next_unused = engine->unused; /* it may still be in engine->news: flush passes over a link without a queue */
    engine->unused = link;
    (void)pthread_mutex_unlock(&engine->lock);
}

void hr_stream_link_notify(void *user)
{
    hr_stream_link *link = user;
    headrace_engine *engine = link->engine; /* constant for the link's life */

    (void)pthread_mutex_lock(&engine->lock);
    if (link->queue) {
        append_ready(link->queue, link);
        if (!link->is_news) {
            link->is_news = true;
            link->next_news = engine->news;
            engine->news = link;
        }
    } else {
        link->is_early = true;
    }
    (void)pthread_mutex_unlock(&engine->lock);
}

void hr_stream_links_flush(void *user)
{
    headrace_engine *engine = user;

    (void)pthread_mutex_lock(&engine->lock);
    while (engine->news) {
        hr_stream_link *link = engine->news;
        headrace_queue *queue = link->queue;

        engine->news = link->next_news;
        link->is_news = false;
        if (queue)
            wake_queue(queue);
    }
    (void)pthread_mutex_unlock(&engine->lock);
}
