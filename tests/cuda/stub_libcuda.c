/* A libcuda that records what it is called with. Types are those of the driver's header, written out. */

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef int CUresult;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphExec_st *CUgraphExec;
typedef enum { CU_JIT_ERROR_LOG_BUFFER = 5, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES = 6 } CUjit_option;
typedef enum { CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION = 6 } CUlaunchAttributeID;

typedef union {
    char pad[64];
    int programmaticStreamSerializationAllowed;
    struct { CUevent event; int flags; int triggerAtBlockStart; } programmaticEvent;
} CUlaunchAttributeValue;

typedef struct {
    CUlaunchAttributeID id;
    char pad[8 - sizeof(CUlaunchAttributeID)];
    CUlaunchAttributeValue value;
} CUlaunchAttribute;

typedef struct {
    unsigned int gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes;
    CUstream hStream;
    CUlaunchAttribute *attrs;
    unsigned int numAttrs;
} CUlaunchConfig;

static char record[4096];
static int code;

const char *stub_record(void) { return record; }
void stub_fail(int with) { code = with; }
size_t stub_sizes(int which) {
    size_t sizes[] = {sizeof(CUlaunchAttribute), sizeof(CUlaunchConfig), offsetof(CUlaunchConfig, hStream),
                      offsetof(CUlaunchConfig, attrs), offsetof(CUlaunchConfig, numAttrs),
                      offsetof(CUlaunchAttribute, value)};
    return sizes[which];
}

#define RECORD(...) do { snprintf(record, sizeof record, __VA_ARGS__); if (code) return code; } while (0)
#define HANDLE(type, number) ((type)(uintptr_t)(number))
#define LONG(x) ((unsigned long long)(uintptr_t)(x))

CUresult cuInit(unsigned int flags) { RECORD("cuInit %u", flags); return 0; }
CUresult cuDriverGetVersion(int *version) { RECORD("cuDriverGetVersion"); *version = 12040; return 0; }
CUresult cuDeviceGetCount(int *count) { RECORD("cuDeviceGetCount"); *count = 3; return 0; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) { RECORD("cuDeviceGet %d", ordinal); *device = 70 + ordinal; return 0; }
CUresult cuDeviceGetName(char *name, int len, CUdevice dev) {
    RECORD("cuDeviceGetName %d %d", len, dev); snprintf(name, len, "Stub GPU"); return 0;
}
CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice dev) {
    RECORD("cuDeviceTotalMem_v2 %d", dev); *bytes = (size_t)141 << 30; return 0;
}
CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice dev) {
    RECORD("cuDeviceGetAttribute %d %d", attribute, dev); *value = 1000 + attribute; return 0;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice dev) {
    RECORD("cuDevicePrimaryCtxRetain %d", dev); *context = HANDLE(CUcontext, 0x7ffff00000010); return 0;
}
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice dev) { RECORD("cuDevicePrimaryCtxRelease_v2 %d", dev); return 0; }
CUresult cuCtxSetCurrent(CUcontext context) { RECORD("cuCtxSetCurrent %llx", LONG(context)); return 0; }
CUresult cuMemGetInfo_v2(size_t *free, size_t *total) {
    RECORD("cuMemGetInfo_v2"); *free = (size_t)5 << 32; *total = (size_t)7 << 32; return 0;
}
CUresult cuMemAlloc_v2(CUdeviceptr *pointer, size_t size) {
    RECORD("cuMemAlloc_v2 %zu", size); *pointer = 0x7fabcdef0000ULL; return 0;
}
CUresult cuMemFree_v2(CUdeviceptr pointer) { RECORD("cuMemFree_v2 %llx", pointer); return 0; }
CUresult cuMemHostAlloc(void **pointer, size_t size, unsigned int flags) {
    RECORD("cuMemHostAlloc %zu %u", size, flags); *pointer = HANDLE(void *, 0x7ffffeee0000); return 0;
}
CUresult cuMemFreeHost(void *pointer) { RECORD("cuMemFreeHost %llx", LONG(pointer)); return 0; }
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr target, const void *source, size_t size, CUstream stream) {
    RECORD("cuMemcpyHtoDAsync_v2 %llx %llx %zu %llx", target, LONG(source), size, LONG(stream)); return 0;
}
CUresult cuMemcpyDtoHAsync_v2(void *target, CUdeviceptr source, size_t size, CUstream stream) {
    RECORD("cuMemcpyDtoHAsync_v2 %llx %llx %zu %llx", LONG(target), source, size, LONG(stream)); return 0;
}
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr target, CUdeviceptr source, size_t size, CUstream stream) {
    RECORD("cuMemcpyDtoDAsync_v2 %llx %llx %zu %llx", target, source, size, LONG(stream)); return 0;
}
CUresult cuMemsetD8Async(CUdeviceptr target, unsigned char value, size_t size, CUstream stream) {
    RECORD("cuMemsetD8Async %llx %d %zu %llx", target, value, size, LONG(stream)); return 0;
}
CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned int count, CUjit_option *options,
                            void **values) {
    if (count == 2 && options[0] == CU_JIT_ERROR_LOG_BUFFER && options[1] == CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES)
        snprintf(values[0], (unsigned int)LONG(values[1]), "\n  ptxas fatal   : no entry\nmore\n");
    RECORD("cuModuleLoadDataEx %s %u %d %d %llu", (const char *)image, count, options[0], options[1], LONG(values[1]));
    *module = HANDLE(CUmodule, 0x700000000011);
    return 0;
}
CUresult cuModuleUnload(CUmodule module) { RECORD("cuModuleUnload %llx", LONG(module)); return 0; }
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    RECORD("cuModuleGetFunction %llx %s", LONG(module), name); *function = HANDLE(CUfunction, 0x700000000022); return 0;
}
CUresult cuFuncSetAttribute(CUfunction function, int attribute, int value) {
    RECORD("cuFuncSetAttribute %llx %d %d", LONG(function), attribute, value); return 0;
}

static void parameters(void **values) {
    snprintf(record + strlen(record), sizeof record - strlen(record), " | %llx %d %a", *(unsigned long long *)values[0],
             *(int *)values[1], *(float *)values[2]);
}
CUresult cuLaunchKernel(CUfunction function, unsigned int gx, unsigned int gy, unsigned int gz, unsigned int bx,
                        unsigned int by, unsigned int bz, unsigned int shared, CUstream stream, void **values,
                        void **extra) {
    RECORD("cuLaunchKernel %llx %u %u %u %u %u %u %u %llx %llx", LONG(function), gx, gy, gz, bx, by, bz, shared,
           LONG(stream), LONG(extra));
    parameters(values);
    return 0;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction function, void **values, void **extra) {
    RECORD("cuLaunchKernelEx %llx %u %u %u %u %u %u %u %llx %llx %u %d %d", LONG(function), c->gridDimX, c->gridDimY,
           c->gridDimZ, c->blockDimX, c->blockDimY, c->blockDimZ, c->sharedMemBytes, LONG(c->hStream), LONG(extra),
           c->numAttrs, c->attrs[0].id, c->attrs[0].value.programmaticStreamSerializationAllowed);
    parameters(values);
    return 0;
}
CUresult cuStreamCreate(CUstream *stream, unsigned int flags) {
    RECORD("cuStreamCreate %u", flags); *stream = HANDLE(CUstream, 0x700000000033); return 0;
}
CUresult cuStreamDestroy_v2(CUstream stream) { RECORD("cuStreamDestroy_v2 %llx", LONG(stream)); return 0; }
CUresult cuStreamSynchronize(CUstream stream) { RECORD("cuStreamSynchronize %llx", LONG(stream)); return 0; }
CUresult cuStreamQuery(CUstream stream) { RECORD("cuStreamQuery %llx", LONG(stream)); return 0; }
CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned int flags) {
    RECORD("cuStreamWaitEvent %llx %llx %u", LONG(stream), LONG(event), flags); return 0;
}
CUresult cuEventCreate(CUevent *event, unsigned int flags) {
    RECORD("cuEventCreate %u", flags); *event = HANDLE(CUevent, 0x700000000044); return 0;
}
CUresult cuEventDestroy_v2(CUevent event) { RECORD("cuEventDestroy_v2 %llx", LONG(event)); return 0; }
CUresult cuEventRecord(CUevent event, CUstream stream) {
    RECORD("cuEventRecord %llx %llx", LONG(event), LONG(stream)); return 0;
}
CUresult cuEventSynchronize(CUevent event) { RECORD("cuEventSynchronize %llx", LONG(event)); return 0; }
CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end) {
    RECORD("cuEventElapsedTime %llx %llx", LONG(start), LONG(end)); *milliseconds = 1.5f; return 0;
}
CUresult cuStreamBeginCapture_v2(CUstream stream, int mode) {
    RECORD("cuStreamBeginCapture_v2 %llx %d", LONG(stream), mode); return 0;
}
CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph) {
    RECORD("cuStreamEndCapture %llx", LONG(stream)); *graph = HANDLE(CUgraph, 0x700000000055); return 0;
}
CUresult cuGraphDestroy(CUgraph graph) { RECORD("cuGraphDestroy %llx", LONG(graph)); return 0; }
CUresult cuGraphInstantiateWithFlags(CUgraphExec *executable, CUgraph graph, unsigned long long flags) {
    RECORD("cuGraphInstantiateWithFlags %llx %llu", LONG(graph), flags);
    *executable = HANDLE(CUgraphExec, 0x700000000066);
    return 0;
}
CUresult cuGraphExecDestroy(CUgraphExec executable) { RECORD("cuGraphExecDestroy %llx", LONG(executable)); return 0; }
CUresult cuGraphLaunch(CUgraphExec executable, CUstream stream) {
    RECORD("cuGraphLaunch %llx %llx", LONG(executable), LONG(stream)); return 0;
}
