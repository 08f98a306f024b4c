/* A CUDA driver for tests of gpuslice doctor: libcuda.so.1 with the few calls that it makes.
 *
 *   FAKE_CUDA_UUIDS    the devices, 32 hex digits each, one after the other
 *   FAKE_CUDA_FAIL     a call that answers with CUDA error 999
 *   FAKE_CUDA_CORRUPT  one byte of what is read back is not what was written
 */
#include <stdlib.h>
#include <stdint.h>
#include <string.h>

static const char *said(const char *name)
{
    const char *text = getenv(name);
    return text ? text : "";
}

static int result(const char *name)
{
    return strcmp(said("FAKE_CUDA_FAIL"), name) ? 0 : 999;
}

int cuInit(unsigned flags) { (void)flags; return result("cuInit"); }

int cuDeviceGetCount(int *count)
{
    *count = (int)(strlen(said("FAKE_CUDA_UUIDS")) / 32);
    return result("cuDeviceGetCount");
}

int cuDeviceGet(int *device, int number) { *device = number; return result("cuDeviceGet"); }

int cuDeviceGetUuid_v2(unsigned char *uuid, int device)
{
    for (int i = 0; i < 16; i++) {
        char digits[3] = {0};
        memcpy(digits, said("FAKE_CUDA_UUIDS") + 32 * device + 2 * i, 2);
        uuid[i] = (unsigned char)strtol(digits, NULL, 16);
    }
    return result("cuDeviceGetUuid_v2");
}

int cuCtxCreate_v2(void **context, unsigned flags, int device)
{
    (void)flags, (void)device;
    *context = context;
    return result("cuCtxCreate_v2");
}

int cuCtxDestroy_v2(void *context) { (void)context; return result("cuCtxDestroy_v2"); }

int cuMemAlloc_v2(uint64_t *memory, size_t size)
{
    *memory = (uint64_t)(uintptr_t)malloc(size);
    return result("cuMemAlloc_v2");
}

int cuMemsetD8_v2(uint64_t memory, unsigned char value, size_t size)
{
    memset((void *)(uintptr_t)memory, value, size);
    if (*said("FAKE_CUDA_CORRUPT"))
        ((char *)(uintptr_t)memory)[size / 2] ^= 1;
    return result("cuMemsetD8_v2");
}

int cuMemcpyDtoH_v2(void *target, uint64_t memory, size_t size)
{
    memcpy(target, (void *)(uintptr_t)memory, size);
    return result("cuMemcpyDtoH_v2");
}

int cuMemFree_v2(uint64_t memory)
{
    free((void *)(uintptr_t)memory);
    return result("cuMemFree_v2");
}
