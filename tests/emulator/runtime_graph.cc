// Stream capture and graphs of the runtime stand-in.
//
// A captured operation becomes a node that comes after the last ones of its stream; events carry the order from stream
// to stream. A graph runs as one operation: with a seed in any order that its edges allow, which shows missing edges.
#include <algorithm>

#include "runtime_internal.h"

struct CUgraph_st {
    std::shared_ptr<emu::Graph> graph;
};
struct CUgraphExec_st {
    std::shared_ptr<const std::vector<emu::Node>> nodes;
};

namespace emu
{

namespace
{

std::set<cudaGraph_t> graphs;
std::set<cudaGraphExec_t> executables;

struct Launch {
    std::shared_ptr<const std::vector<Node>> nodes;
    std::vector<Runner> runners;
};

// Nodes in an order that respects the edges; the order of capture without a seed.
std::vector<size_t> order_of(const std::vector<Node> &nodes)
{
    std::vector<size_t> order, ready, missing(nodes.size());

    for (size_t i = 0; i < nodes.size(); i++) {
        missing[i] = nodes[i].after.size();
        if (!has_seed())
            order.push_back(i);
        else if (!missing[i])
            ready.push_back(i);
    }
    while (!ready.empty()) {
        size_t chosen = random_below(ready.size()), node = ready[chosen];
        ready.erase(ready.begin() + static_cast<ptrdiff_t>(chosen));
        order.push_back(node);
        for (size_t i = node + 1; i < nodes.size(); i++)
            if (std::count(nodes[i].after.begin(), nodes[i].after.end(), node) && --missing[i] == 0)
                ready.push_back(i);
    }
    return order;
}

void run_graph(const Launch &launch, Stream &stream)
{
    const std::vector<Node> &nodes = *launch.nodes;
    std::vector<uint64_t> grids(nodes.size());

    for (size_t i : order_of(nodes)) {
        if (sticky())
            return;
        stream.last_grid = nodes[i].after.size() == 1 ? grids[nodes[i].after[0]] : 0;
        launch.runners[i](stream);
        grids[i] = nodes[i].work.kind == KERNEL_NODE ? stream.last_grid : 0;
    }
    stream.last_grid = 0;
}

// Whether every node of `tail` is an ancestor of, or among, the nodes in `joined`.
bool is_joined(const Graph &graph, const std::vector<size_t> &tail, const std::vector<size_t> &joined)
{
    std::set<size_t> seen;
    std::vector<size_t> open = joined;

    while (!open.empty()) {
        size_t node = open.back();
        open.pop_back();
        if (seen.insert(node).second)
            open.insert(open.end(), graph.nodes[node].after.begin(), graph.nodes[node].after.end());
    }
    return std::all_of(tail.begin(), tail.end(), [&](size_t node) { return seen.count(node) != 0; });
}

cudaError_t instantiate(cudaGraphExec_t *executable, cudaGraph_t graph)
{
    if (!graphs.count(graph))
        return fail(cudaErrorInvalidValue);
    *executable = new CUgraphExec_st{std::make_shared<const std::vector<Node>>(graph->graph->nodes)};
    executables.insert(*executable);
    return cudaSuccess;
}

bool is_same_shape(const std::vector<Node> &a, const std::vector<Node> &b)
{
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Node &x, const Node &y) {
        return x.work.kind == y.work.kind && x.work.function == y.work.function && x.after == y.after;
    });
}

} // namespace

void invalidate(Stream &stream)
{
    if (stream.capture)
        stream.capture->is_invalid = true;
}

cudaError_t submit_work(const std::shared_ptr<Stream> &stream, Work work)
{
    if (stream->is_null) {
        for (auto &other : captured_streams()) {
            if (!other->is_blocking)
                continue;
            invalidate(*other);
            return fail(cudaErrorStreamCaptureImplicit);
        }
    }
    if (!stream->capture) {
        bool is_kernel = work.kind == KERNEL_NODE;
        Runner runner = work.prepare();
        submit(stream, {[=](Stream &s) {
                            runner(s);
                            s.last_grid = is_kernel ? s.last_grid : 0;
                        },
                        {}});
        return cudaSuccess;
    }
    Graph &graph = *stream->capture;
    if (graph.is_invalid)
        return fail(cudaErrorStreamCaptureInvalidated);
    graph.nodes.push_back({std::move(work), stream->tail});
    stream->tail = {graph.nodes.size() - 1};
    return cudaSuccess;
}

size_t n_graph_handles()
{
    return graphs.size() + executables.size();
}

void reset_graphs()
{
    for (cudaGraph_t graph : graphs)
        delete graph;
    for (cudaGraphExec_t executable : executables)
        delete executable;
    graphs.clear();
    executables.clear();
}

} // namespace emu

using namespace emu;

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode)
{
    EMU_CALL(PLAIN);
    std::shared_ptr<Stream> stream = find_stream(handle);

    if (!stream)
        return fail(cudaErrorInvalidResourceHandle);
    if (stream->is_null)
        return fail(cudaErrorStreamCaptureUnsupported);
    if (stream->capture)
        return fail(cudaErrorIllegalState);
    stream->capture = std::make_shared<Graph>();
    stream->capture->origin = stream;
    stream->capture->mode = mode;
    stream->tail.clear();
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *result)
{
    EMU_CALL(PLAIN);
    std::shared_ptr<Stream> stream = find_stream(handle);

    *result = nullptr;
    if (!stream)
        return fail(cudaErrorInvalidResourceHandle);
    std::shared_ptr<Graph> graph = stream->capture;
    if (!graph)
        return fail(cudaErrorIllegalState);
    if (graph->origin != stream)
        return fail(cudaErrorStreamCaptureUnmatched);
    bool all_joined = true;
    for (auto &other : captured_streams()) {
        if (other->capture != graph)
            continue;
        all_joined = all_joined && is_joined(*graph, other->tail, stream->tail);
        other->capture = nullptr;
    }
    graph->origin = nullptr;
    if (graph->is_invalid)
        return fail(cudaErrorStreamCaptureInvalidated);
    if (!all_joined)
        return fail(cudaErrorStreamCaptureUnjoined);
    *result = new CUgraph_st{graph};
    graphs.insert(*result);
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus *status)
{
    EMU_CALL(PLAIN);
    std::shared_ptr<Stream> stream = find_stream(handle);

    if (!stream)
        return fail(cudaErrorInvalidResourceHandle);
    *status = !stream->capture              ? cudaStreamCaptureStatusNone
              : stream->capture->is_invalid ? cudaStreamCaptureStatusInvalidated
                                            : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long)
{
    EMU_CALL(MAKE);
    return instantiate(executable, graph);
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long)
{
    EMU_CALL(MAKE);
    return instantiate(executable, graph);
}

cudaError_t cudaGraphExecUpdate(cudaGraphExec_t executable, cudaGraph_t graph, cudaGraphExecUpdateResultInfo *info)
{
    EMU_CALL(PLAIN);
    if (!executables.count(executable) || !graphs.count(graph))
        return fail(cudaErrorInvalidValue);
    bool fits = is_same_shape(*executable->nodes, graph->graph->nodes);
    *info = {fits ? cudaGraphExecUpdateSuccess : cudaGraphExecUpdateErrorTopologyChanged, nullptr, nullptr};
    if (!fits)
        return fail(cudaErrorGraphExecUpdateFailure);
    executable->nodes = std::make_shared<const std::vector<Node>>(graph->graph->nodes);
    return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t executable, cudaStream_t handle)
{
    EMU_CALL(PLAIN);
    return executables.count(executable) && find_stream(handle) ? cudaSuccess : fail(cudaErrorInvalidValue);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t handle)
{
    EMU_CALL(PLAIN);
    std::shared_ptr<Stream> stream = find_stream(handle);

    if (!stream || !executables.count(executable))
        return fail(stream ? cudaErrorInvalidValue : cudaErrorInvalidResourceHandle);
    if (stream->capture) {
        invalidate(*stream);
        return fail(cudaErrorStreamCaptureUnsupported);
    }
    auto launch = std::make_shared<Launch>();
    launch->nodes = executable->nodes;
    for (const Node &node : *launch->nodes)
        launch->runners.push_back(node.work.prepare());
    submit(stream, {[launch](Stream &s) {
                        s.is_in_graph = true;
                        run_graph(*launch, s);
                        s.is_in_graph = false;
                    },
                    {}});
    return cudaSuccess;
}

// Only the count: nodes == NULL.
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *n)
{
    EMU_CALL(PLAIN);
    if (!graphs.count(graph) || nodes)
        return fail(cudaErrorInvalidValue);
    *n = graph->graph->nodes.size();
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    EMU_CALL(MAKE);
    if (!graphs.erase(graph))
        return fail(cudaErrorInvalidValue);
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable)
{
    EMU_CALL(MAKE);
    if (!executables.erase(executable))
        return fail(cudaErrorInvalidValue);
    delete executable;
    return cudaSuccess;
}

} // extern "C"
