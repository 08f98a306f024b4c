/* nvmlsim.c - a stand-in for libnvidia-ml.so.1, so that everything that speaks NVML runs without a GPU.
 *
 * The fleet it shows lives in a file named by NVMLSIM_STATE, written by Python (`nvmlsim.Fleet`) and mapped by every
 * process that loads this library, so a test that says "used = 7.9 GB now" is believed everywhere at once.
 *
 * How a reader never sees half a change: the file holds the state twice.  A writer fills the copy nobody reads, with the
 * new generation number inside it, and then publishes that number in the header; copy = generation & 1.  A reader copies
 * what it needs and accepts it only if header and copy carried the same number before and after.  A writer killed half
 * way leaves the published copy whole, which a plain sequence lock (odd = being written) would not.  Writers exclude
 * each other with flock.
 *
 * Environment, read by nvmlInit:
 *   NVMLSIM_STATE    the fleet file
 *   NVMLSIM_VIEW     host (default), mig-container or shared-container
 *   NVMLSIM_VISIBLE  comma list of UUIDs that this process may see; needed by the container views
 *
 * What is wrong with the state file is told by NVML's own codes:
 *   DRIVER_NOT_LOADED (9)   NVMLSIM_STATE unset, or no such file
 *   NO_PERMISSION (4)       the file cannot be opened
 *   CORRUPTED_INFOROM (14)  not a fleet file, or shorter than it must be (looked at again on every call)
 *   LIB_RM_VERSION_MISMATCH (18)  written by another version of nvmlsim
 *   INVALID_ARGUMENT (2)    NVMLSIM_VIEW or NVMLSIM_VISIBLE makes no sense
 *
 * Build (nvmlsim.build does it):
 *   cc -std=c11 -O2 -Wall -Wextra -Werror -fPIC -shared -fvisibility=hidden -pthread \
 *      -Wl,-soname,libnvidia-ml.so.1 -o libnvidia-ml.so.1 nvmlsim.c
 * The SONAME is what lets LD_PRELOAD, or a CDLL() of the full path, satisfy a later dlopen("libnvidia-ml.so.1").
 * With -DNVMLSIM_ABI_CHECK NVIDIA's own nvml.h replaces our declarations, so that the same asserts and the compiler's
 * own comparison of prototypes prove that ours are right.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <math.h>

#define API __attribute__((visibility("default")))

/* ---- the exports ------------------------------------------------------------------------------------------------
 * X(name, first driver branch that has it, scope).  Python reads this list too: it is the list of names that a fault
 * may be planted in, and the numbers in the call log index it.  nvmlErrorString is exported too but cannot fail.
 *
 * Scope, what a handle may be:
 *   LIBRARY   there is no device
 *   ANY       a GPU, a slice, or a GPU of which this container may only see a slice
 *   DATA      a GPU or a slice; NO_PERMISSION for a GPU of which only a slice may be seen
 *   CARD      whole GPU only; NOT_SUPPORTED on a slice
 *   CARD_ARG  whole GPU only; INVALID_ARGUMENT on a slice
 */
#define FUNCTIONS(X) \
    X(nvmlInit_v2, 0, LIBRARY) \
    X(nvmlInitWithFlags, 0, LIBRARY) \
    X(nvmlShutdown, 0, LIBRARY) \
    X(nvmlSystemGetDriverVersion, 0, LIBRARY) \
    X(nvmlSystemGetNVMLVersion, 0, LIBRARY) \
    X(nvmlSystemGetCudaDriverVersion, 0, LIBRARY) \
    X(nvmlSystemGetCudaDriverVersion_v2, 0, LIBRARY) \
    X(nvmlSystemGetProcessName, 0, LIBRARY) \
    X(nvmlDeviceGetCount_v2, 0, LIBRARY) \
    X(nvmlDeviceGetHandleByIndex_v2, 0, LIBRARY) \
    X(nvmlDeviceGetHandleByUUID, 0, LIBRARY) \
    X(nvmlDeviceGetHandleByPciBusId_v2, 0, LIBRARY) \
    X(nvmlDeviceGetIndex, 0, ANY) \
    X(nvmlDeviceGetName, 0, ANY) \
    X(nvmlDeviceGetUUID, 0, ANY) \
    X(nvmlDeviceGetSerial, 0, CARD) \
    X(nvmlDeviceGetMinorNumber, 0, ANY) \
    X(nvmlDeviceGetPciInfo_v3, 0, ANY) \
    X(nvmlDeviceGetCudaComputeCapability, 0, ANY) \
    X(nvmlDeviceGetMigMode, 450, ANY) \
    X(nvmlDeviceIsMigDeviceHandle, 450, ANY) \
    X(nvmlDeviceGetMaxMigDeviceCount, 450, ANY) \
    X(nvmlDeviceGetMigDeviceHandleByIndex, 450, ANY) \
    X(nvmlDeviceGetDeviceHandleFromMigDeviceHandle, 450, ANY) \
    X(nvmlDeviceGetGpuInstanceId, 450, ANY) \
    X(nvmlDeviceGetComputeInstanceId, 450, ANY) \
    X(nvmlDeviceGetAttributes_v2, 450, DATA) \
    X(nvmlDeviceGetGpuInstanceById, 450, DATA) \
    X(nvmlGpuInstanceGetInfo, 450, LIBRARY) \
    X(nvmlDeviceGetMemoryInfo, 0, DATA) \
    X(nvmlDeviceGetMemoryInfo_v2, 510, DATA) \
    X(nvmlDeviceGetBAR1MemoryInfo, 0, DATA) \
    X(nvmlDeviceGetMemoryLimits_v1, 615, CARD) \
    X(nvmlDeviceSetMemoryLimits_v1, 615, CARD) \
    X(nvmlDeviceGetUtilizationRates, 0, DATA) \
    X(nvmlDeviceGetEncoderUtilization, 0, DATA) \
    X(nvmlDeviceGetDecoderUtilization, 0, DATA) \
    X(nvmlGpmQueryDeviceSupport, 525, ANY) \
    X(nvmlGpmSampleAlloc, 525, LIBRARY) \
    X(nvmlGpmSampleFree, 525, LIBRARY) \
    X(nvmlGpmSampleGet, 525, DATA) \
    X(nvmlGpmMigSampleGet, 525, ANY) \
    X(nvmlGpmMetricsGet, 525, LIBRARY) \
    X(nvmlDeviceGetComputeRunningProcesses_v2, 450, DATA) \
    X(nvmlDeviceGetComputeRunningProcesses_v3, 510, DATA) \
    X(nvmlDeviceGetGraphicsRunningProcesses_v2, 450, DATA) \
    X(nvmlDeviceGetGraphicsRunningProcesses_v3, 510, DATA) \
    X(nvmlDeviceGetMPSComputeRunningProcesses_v2, 450, DATA) \
    X(nvmlDeviceGetMPSComputeRunningProcesses_v3, 510, DATA) \
    X(nvmlDeviceGetProcessUtilization, 0, CARD) \
    X(nvmlDeviceGetTemperature, 0, CARD_ARG) \
    X(nvmlDeviceGetTemperatureV, 570, CARD_ARG) \
    X(nvmlDeviceGetPowerUsage, 0, CARD) \
    X(nvmlDeviceGetTotalEnergyConsumption, 0, CARD) \
    X(nvmlDeviceGetPowerManagementLimit, 0, CARD) \
    X(nvmlDeviceGetEnforcedPowerLimit, 0, CARD) \
    X(nvmlDeviceGetFanSpeed, 0, CARD) \
    X(nvmlDeviceGetPerformanceState, 0, CARD) \
    X(nvmlDeviceGetPersistenceMode, 0, ANY) \
    X(nvmlDeviceGetComputeMode, 0, ANY) \
    X(nvmlDeviceGetDisplayActive, 0, ANY) \
    X(nvmlDeviceGetDisplayMode, 0, ANY) \
    X(nvmlDeviceGetTotalEccErrors, 0, CARD) \
    X(nvmlDeviceGetClockInfo, 0, CARD) \
    X(nvmlDeviceGetMaxClockInfo, 0, CARD) \
    X(nvmlDeviceGetMaxPcieLinkGeneration, 0, CARD) \
    X(nvmlDeviceGetMaxPcieLinkWidth, 0, CARD) \
    X(nvmlDeviceGetPcieThroughput, 0, CARD) \
    X(nvmlDeviceGetNvLinkVersion, 0, CARD) \
    X(nvmlDeviceGetDriverModel_v2, 0, ANY) \
    X(nvmlDeviceGetFieldValues, 0, DATA)

enum scope { LIBRARY, ANY, DATA, CARD, CARD_ARG };
#define ID(name, since, scope) F_##name,
enum function { FUNCTIONS(ID) FUNCTION_COUNT };
#undef ID
static const struct { const char *name; unsigned since; enum scope scope; } functions[] = {
#define ROW(name, since, scope) {#name, since, scope},
    FUNCTIONS(ROW)
#undef ROW
};

/* ---- NVML's ABI -------------------------------------------------------------------------------------------------- */
#ifdef NVMLSIM_ABI_CHECK
#include <nvml.h>
#else
typedef enum {
    NVML_SUCCESS = 0,
    NVML_ERROR_UNINITIALIZED = 1,
    NVML_ERROR_INVALID_ARGUMENT = 2,
    NVML_ERROR_NOT_SUPPORTED = 3,
    NVML_ERROR_NO_PERMISSION = 4,
    NVML_ERROR_NOT_FOUND = 6,
    NVML_ERROR_INSUFFICIENT_SIZE = 7,
    NVML_ERROR_DRIVER_NOT_LOADED = 9,
    NVML_ERROR_TIMEOUT = 10,
    NVML_ERROR_FUNCTION_NOT_FOUND = 13,
    NVML_ERROR_CORRUPTED_INFOROM = 14,
    NVML_ERROR_GPU_IS_LOST = 15,
    NVML_ERROR_OPERATING_SYSTEM = 17,
    NVML_ERROR_LIB_RM_VERSION_MISMATCH = 18,
    NVML_ERROR_MEMORY = 20,
    NVML_ERROR_INSUFFICIENT_RESOURCES = 23,
    NVML_ERROR_ARGUMENT_VERSION_MISMATCH = 25,
    NVML_ERROR_UNKNOWN = 999,
} nvmlReturn_t;

/* Enumerations that we only pass through; an enum without negative values has the ABI of unsigned int. */
typedef unsigned int nvmlEnableState_t, nvmlComputeMode_t, nvmlPstates_t, nvmlTemperatureSensors_t, nvmlClockType_t,
    nvmlMemoryErrorType_t, nvmlEccCounterType_t, nvmlPcieUtilCounter_t, nvmlDriverModel_t, nvmlValueType_t;

typedef struct nvmlDevice_st *nvmlDevice_t;
typedef struct nvmlGpuInstance_st *nvmlGpuInstance_t;
typedef struct nvmlGpmSample_st *nvmlGpmSample_t;

typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } nvmlMemory_v2_t;
typedef struct { unsigned long long bar1Total, bar1Free, bar1Used; } nvmlBAR1Memory_t;
typedef struct { const char *nameSpace; unsigned long long softLimit, hardLimit; } nvmlSetMemoryLimits_v1_t;
typedef struct { const char *nameSpace; unsigned long long softLimit, hardLimit, currentUsed; } nvmlGetMemoryLimits_v1_t;
typedef struct { unsigned int gpu, memory; } nvmlUtilization_t;
typedef struct {
    unsigned int pid;
    unsigned long long usedGpuMemory;
    unsigned int gpuInstanceId, computeInstanceId;
} nvmlProcessInfo_v2_t, nvmlProcessInfo_t;
typedef struct {
    unsigned int pid;
    unsigned long long timeStamp;
    unsigned int smUtil, memUtil, encUtil, decUtil;
} nvmlProcessUtilizationSample_t;
typedef struct {
    char busIdLegacy[16];
    unsigned int domain, bus, device, pciDeviceId, pciSubSystemId;
    char busId[32];
} nvmlPciInfo_t;
typedef struct {
    unsigned int multiprocessorCount, sharedCopyEngineCount, sharedDecoderCount, sharedEncoderCount, sharedJpegCount,
        sharedOfaCount, gpuInstanceSliceCount, computeInstanceSliceCount;
    unsigned long long memorySizeMB;
} nvmlDeviceAttributes_t;
typedef struct { unsigned int start, size; } nvmlGpuInstancePlacement_t;
typedef struct {
    nvmlDevice_t device;
    unsigned int id, profileId;
    nvmlGpuInstancePlacement_t placement;
} nvmlGpuInstanceInfo_t;
typedef struct { unsigned int version; nvmlTemperatureSensors_t sensorType; int temperature; } nvmlTemperature_v1_t;
typedef nvmlTemperature_v1_t nvmlTemperature_t;
typedef union { double dVal; unsigned long long ullVal; } nvmlValue_t;
typedef struct {
    unsigned int fieldId, scopeId;
    long long timestamp, latencyUsec;
    nvmlValueType_t valueType;
    nvmlReturn_t nvmlReturn;
    nvmlValue_t value;
} nvmlFieldValue_t;
typedef struct {
    unsigned int metricId;
    nvmlReturn_t nvmlReturn;
    double value;
    struct { char *shortName, *longName, *unit; } metricInfo;
} nvmlGpmMetric_t;
#define NVML_GPM_METRIC_MAX 477
typedef struct {
    unsigned int version, numMetrics;
    nvmlGpmSample_t sample1, sample2;
    nvmlGpmMetric_t metrics[NVML_GPM_METRIC_MAX];
} nvmlGpmMetricsGet_t;
typedef struct { unsigned int version, isSupportedDevice; } nvmlGpmSupport_t;

#define NVML_GPM_METRICS_GET_VERSION 1
#define NVML_GPM_SUPPORT_VERSION 1
#define NVML_GPM_METRIC_GRAPHICS_UTIL 1
#define NVML_GPM_METRIC_SM_UTIL 2
#define NVML_GPM_METRIC_DRAM_BW_UTIL 10
#define NVML_DEVICE_MEMORY_LIMIT_MAX 0xFFFFFFFFFFFFFFFF
#define NVML_STRUCT_VERSION(data, ver) (unsigned int)(sizeof(nvml##data##_v##ver##_t) | (ver << 24U))
#define nvmlMemory_v2 NVML_STRUCT_VERSION(Memory, 2)
#define nvmlTemperature_v1 NVML_STRUCT_VERSION(Temperature, 1)
#endif

/* Compiled in both modes: what holds for NVIDIA's header under NVMLSIM_ABI_CHECK holds for ours. */
#define SIZE(type, bytes) _Static_assert(sizeof(type) == (bytes), "size of " #type)
#define AT(type, field, offset, bytes) \
    _Static_assert(offsetof(type, field) == (offset) && sizeof(((type *)0)->field) == (bytes), #type "." #field)
#define CODE(name, number) _Static_assert(name == (number), #name)
SIZE(nvmlMemory_t, 24); AT(nvmlMemory_t, total, 0, 8); AT(nvmlMemory_t, free, 8, 8); AT(nvmlMemory_t, used, 16, 8);
SIZE(nvmlMemory_v2_t, 40); AT(nvmlMemory_v2_t, version, 0, 4); AT(nvmlMemory_v2_t, total, 8, 8);
    AT(nvmlMemory_v2_t, reserved, 16, 8); AT(nvmlMemory_v2_t, free, 24, 8); AT(nvmlMemory_v2_t, used, 32, 8);
SIZE(nvmlBAR1Memory_t, 24); AT(nvmlBAR1Memory_t, bar1Total, 0, 8); AT(nvmlBAR1Memory_t, bar1Free, 8, 8);
    AT(nvmlBAR1Memory_t, bar1Used, 16, 8);
SIZE(nvmlSetMemoryLimits_v1_t, 24); AT(nvmlSetMemoryLimits_v1_t, nameSpace, 0, 8);
    AT(nvmlSetMemoryLimits_v1_t, softLimit, 8, 8); AT(nvmlSetMemoryLimits_v1_t, hardLimit, 16, 8);
SIZE(nvmlGetMemoryLimits_v1_t, 32); AT(nvmlGetMemoryLimits_v1_t, nameSpace, 0, 8);
    AT(nvmlGetMemoryLimits_v1_t, softLimit, 8, 8); AT(nvmlGetMemoryLimits_v1_t, hardLimit, 16, 8);
    AT(nvmlGetMemoryLimits_v1_t, currentUsed, 24, 8);
SIZE(nvmlUtilization_t, 8); AT(nvmlUtilization_t, gpu, 0, 4); AT(nvmlUtilization_t, memory, 4, 4);
SIZE(nvmlProcessInfo_t, 24); AT(nvmlProcessInfo_t, pid, 0, 4); AT(nvmlProcessInfo_t, usedGpuMemory, 8, 8);
    AT(nvmlProcessInfo_t, gpuInstanceId, 16, 4); AT(nvmlProcessInfo_t, computeInstanceId, 20, 4);
SIZE(nvmlProcessInfo_v2_t, 24);
SIZE(nvmlProcessUtilizationSample_t, 32); AT(nvmlProcessUtilizationSample_t, pid, 0, 4);
    AT(nvmlProcessUtilizationSample_t, timeStamp, 8, 8); AT(nvmlProcessUtilizationSample_t, smUtil, 16, 4);
    AT(nvmlProcessUtilizationSample_t, memUtil, 20, 4); AT(nvmlProcessUtilizationSample_t, encUtil, 24, 4);
    AT(nvmlProcessUtilizationSample_t, decUtil, 28, 4);
SIZE(nvmlPciInfo_t, 68); AT(nvmlPciInfo_t, busIdLegacy, 0, 16); AT(nvmlPciInfo_t, domain, 16, 4);
    AT(nvmlPciInfo_t, bus, 20, 4); AT(nvmlPciInfo_t, device, 24, 4); AT(nvmlPciInfo_t, pciDeviceId, 28, 4);
    AT(nvmlPciInfo_t, pciSubSystemId, 32, 4); AT(nvmlPciInfo_t, busId, 36, 32);
SIZE(nvmlDeviceAttributes_t, 40); AT(nvmlDeviceAttributes_t, multiprocessorCount, 0, 4);
    AT(nvmlDeviceAttributes_t, sharedCopyEngineCount, 4, 4); AT(nvmlDeviceAttributes_t, sharedDecoderCount, 8, 4);
    AT(nvmlDeviceAttributes_t, sharedEncoderCount, 12, 4); AT(nvmlDeviceAttributes_t, sharedJpegCount, 16, 4);
    AT(nvmlDeviceAttributes_t, sharedOfaCount, 20, 4); AT(nvmlDeviceAttributes_t, gpuInstanceSliceCount, 24, 4);
    AT(nvmlDeviceAttributes_t, computeInstanceSliceCount, 28, 4); AT(nvmlDeviceAttributes_t, memorySizeMB, 32, 8);
SIZE(nvmlGpuInstancePlacement_t, 8); AT(nvmlGpuInstancePlacement_t, start, 0, 4);
    AT(nvmlGpuInstancePlacement_t, size, 4, 4);
SIZE(nvmlGpuInstanceInfo_t, 24); AT(nvmlGpuInstanceInfo_t, device, 0, 8); AT(nvmlGpuInstanceInfo_t, id, 8, 4);
    AT(nvmlGpuInstanceInfo_t, profileId, 12, 4); AT(nvmlGpuInstanceInfo_t, placement, 16, 8);
SIZE(nvmlTemperature_t, 12); AT(nvmlTemperature_t, version, 0, 4); AT(nvmlTemperature_t, sensorType, 4, 4);
    AT(nvmlTemperature_t, temperature, 8, 4);
SIZE(nvmlFieldValue_t, 40); AT(nvmlFieldValue_t, fieldId, 0, 4); AT(nvmlFieldValue_t, scopeId, 4, 4);
    AT(nvmlFieldValue_t, timestamp, 8, 8); AT(nvmlFieldValue_t, latencyUsec, 16, 8);
    AT(nvmlFieldValue_t, valueType, 24, 4); AT(nvmlFieldValue_t, nvmlReturn, 28, 4);
    AT(nvmlFieldValue_t, value, 32, 8);
SIZE(nvmlGpmMetric_t, 40); AT(nvmlGpmMetric_t, metricId, 0, 4); AT(nvmlGpmMetric_t, nvmlReturn, 4, 4);
    AT(nvmlGpmMetric_t, value, 8, 8); AT(nvmlGpmMetric_t, metricInfo, 16, 24);
SIZE(nvmlGpmMetricsGet_t, 19104); AT(nvmlGpmMetricsGet_t, version, 0, 4); AT(nvmlGpmMetricsGet_t, numMetrics, 4, 4);
    AT(nvmlGpmMetricsGet_t, sample1, 8, 8); AT(nvmlGpmMetricsGet_t, sample2, 16, 8);
    AT(nvmlGpmMetricsGet_t, metrics, 24, 19080);
SIZE(nvmlGpmSupport_t, 8); AT(nvmlGpmSupport_t, version, 0, 4); AT(nvmlGpmSupport_t, isSupportedDevice, 4, 4);
SIZE(nvmlReturn_t, 4); SIZE(nvmlEnableState_t, 4); SIZE(nvmlPstates_t, 4); SIZE(nvmlClockType_t, 4);
SIZE(nvmlTemperatureSensors_t, 4); SIZE(nvmlDriverModel_t, 4); SIZE(nvmlDevice_t, 8); SIZE(nvmlGpuInstance_t, 8);
_Static_assert(nvmlMemory_v2 == 0x2000028 && nvmlTemperature_v1 == 0x100000c, "versions of structs");
_Static_assert(NVML_GPM_METRICS_GET_VERSION == 1 && NVML_GPM_SUPPORT_VERSION == 1 && NVML_GPM_METRIC_MAX == 477, "GPM");
_Static_assert(NVML_GPM_METRIC_GRAPHICS_UTIL == 1 && NVML_GPM_METRIC_SM_UTIL == 2 && NVML_GPM_METRIC_DRAM_BW_UTIL == 10, "GPM");
CODE(NVML_ERROR_UNINITIALIZED, 1); CODE(NVML_ERROR_INVALID_ARGUMENT, 2); CODE(NVML_ERROR_NOT_SUPPORTED, 3);
CODE(NVML_ERROR_NO_PERMISSION, 4); CODE(NVML_ERROR_NOT_FOUND, 6); CODE(NVML_ERROR_INSUFFICIENT_SIZE, 7);
CODE(NVML_ERROR_DRIVER_NOT_LOADED, 9); CODE(NVML_ERROR_TIMEOUT, 10); CODE(NVML_ERROR_FUNCTION_NOT_FOUND, 13);
CODE(NVML_ERROR_CORRUPTED_INFOROM, 14); CODE(NVML_ERROR_GPU_IS_LOST, 15); CODE(NVML_ERROR_OPERATING_SYSTEM, 17);
CODE(NVML_ERROR_LIB_RM_VERSION_MISMATCH, 18); CODE(NVML_ERROR_MEMORY, 20); CODE(NVML_ERROR_INSUFFICIENT_RESOURCES, 23);
CODE(NVML_ERROR_ARGUMENT_VERSION_MISMATCH, 25); CODE(NVML_ERROR_UNKNOWN, 999);

/* ---- the state file; nvmlsim/layout.py declares the same, and a test compares the sizes ------------------------- */
enum {
    LAYOUT_VERSION = 1, HEADER_SIZE = 4096, MAX_GPUS = 16, MAX_MIG = 7, MAX_PROCESSES = 256, MAX_FAULTS = 64,
    MAX_LIMITS = 64, LOG_SIZE = 8192, WHOLE = 0xff, TEXT = 64
};
enum { PIDS_HOST = 0, PIDS_NAMESPACED = 1 };
#define NO_INSTANCE 0xffffffffu
#define NONE 0xffffffffu

struct sim_mig {
    uint32_t serial;                     /* 0: nothing here; never used twice on one GPU, so an old handle is known */
    uint32_t gpu_instance, compute_instance, profile_id;
    uint32_t start, size;                /* memory slots */
    uint32_t compute_slices, multiprocessors;
    uint64_t total, reserved, used;      /* bytes */
    double utilisation, memory_utilisation;   /* percent of this slice; NaN is handed on */
    char profile[32], uuid[TEXT];
};
struct sim_gpu {
    uint32_t health;                     /* 0, or the nvmlReturn_t that every call on it answers */
    uint32_t mig_capable, mig_enabled, mig_pending, max_mig;
    uint32_t gpm_supported, mig_answers_rates;
    uint32_t cc_major, cc_minor, pci_bus, pci_device_id;
    uint32_t power, power_limit;         /* milliwatt */
    uint32_t temperature, fan;           /* degrees Celsius; percent, NONE without a fan */
    uint32_t sm_clock, memory_clock, max_sm_clock, max_memory_clock;   /* MHz */
    uint32_t pcie_generation, pcie_width, pcie_tx, pcie_rx;            /* kB/s */
    uint32_t next_serial;
    uint64_t total, reserved, used;      /* bytes; used: besides what its instances use */
    uint64_t energy;                     /* millijoule */
    double utilisation, memory_utilisation;   /* percent */
    char name[96], uuid[TEXT], board_serial[32];
    struct sim_mig mig[MAX_MIG];
};
struct sim_fault {
    char function[TEXT];
    int32_t error;                       /* 0: only slow */
    uint32_t delay;                      /* microseconds */
    uint32_t gpu, serial;                /* gpu NONE: everywhere; serial 0: the GPU itself */
};
struct sim_limit { uint64_t soft, hard, used; uint32_t active, gpu; char cgroup[256]; };
struct sim_process {
    uint32_t pid, namespaced_pid, gpu, serial;   /* serial 0: on the GPU itself */
    uint32_t kind, pad;                  /* 0 compute, 1 graphics, 2 MPS */
    uint64_t memory, seen;               /* bytes, all ones: not available; microseconds since 1970 */
    double utilisation, memory_utilisation;
};
struct sim_head {
    uint64_t generation;
    uint32_t gpu_count, process_count, fault_count, driver_branch, cuda_version, pid_mode;
    int32_t init_error;
    uint32_t pad;
    char driver[80], nvml[80];
    struct sim_fault fault[MAX_FAULTS];
};
struct sim_state {
    struct sim_head head;
    struct sim_gpu gpu[MAX_GPUS];
    struct sim_limit limit[MAX_LIMITS];
    struct sim_process process[MAX_PROCESSES];
};
struct log_entry { _Atomic uint64_t number; uint32_t pid, function, gpu, serial; };
struct sim_header {
    char magic[8];
    uint32_t version, state_size;
    _Atomic uint64_t generation;
    _Atomic uint64_t calls;
};
struct sim_file {
    union { struct sim_header header; char bytes[HEADER_SIZE]; };
    struct sim_state copy[2];
    struct log_entry log[LOG_SIZE];
};
static const char MAGIC[8] = "NVMLSIM";
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "the generation is read without a lock");

/* ---- one attachment to a state file ----------------------------------------------------------------------------- */
enum view { HOST, MIG_CONTAINER, SHARED_CONTAINER };
enum { MAX_VISIBLE = MAX_GPUS * (MAX_MIG + 1) };
struct session {
    int fd, writable;
    dev_t dev;
    ino_t ino;
    struct sim_file *file;
    enum view view;
    unsigned visible_count;
    char visible[MAX_VISIBLE][TEXT];
    char path[4096], view_text[32], *visible_text;
};

/* Replaced only by an nvmlInit that finds another file or view; the old one stays mapped, because another thread may
 * be inside a call.  That happens in tests only, and costs address space, not memory. */
static struct session *_Atomic current;
static atomic_int users;
static pthread_mutex_t init_lock = PTHREAD_MUTEX_INITIALIZER, write_lock = PTHREAD_MUTEX_INITIALIZER;

static int parse_view(struct session *s, const char *view, const char *visible) {
    if (!view || !*view || !strcmp(view, "host")) s->view = HOST;
    else if (!strcmp(view, "mig-container")) s->view = MIG_CONTAINER;
    else if (!strcmp(view, "shared-container")) s->view = SHARED_CONTAINER;
    else return -1;
    snprintf(s->view_text, sizeof s->view_text, "%s", view ? view : "");
    s->visible_text = strdup(visible ? visible : "");
    char *list = strdup(s->visible_text), *rest = NULL;
    int bad = !s->visible_text || !list;
    for (char *item = bad ? NULL : strtok_r(list, ",", &rest); item; item = strtok_r(NULL, ",", &rest)) {
        if (s->visible_count == MAX_VISIBLE || strlen(item) >= TEXT) { bad = 1; break; }
        strcpy(s->visible[s->visible_count++], item);
    }
    free(list);
    return bad ? -1 : 0;
}

static nvmlReturn_t map_file(struct session *s, const char *path) {
    snprintf(s->path, sizeof s->path, "%s", path);
    s->fd = open(path, O_RDWR | O_CLOEXEC);
    s->writable = s->fd >= 0;
    if (s->fd < 0) s->fd = open(path, O_RDONLY | O_CLOEXEC);      /* a reader that may not write: no call log */
    if (s->fd < 0) return errno == ENOENT || errno == ENOTDIR ? NVML_ERROR_DRIVER_NOT_LOADED : NVML_ERROR_NO_PERMISSION;
    struct stat st;
    if (fstat(s->fd, &st) || !S_ISREG(st.st_mode)) return NVML_ERROR_CORRUPTED_INFOROM;
    s->dev = st.st_dev;
    s->ino = st.st_ino;
    struct sim_header h;
    if (pread(s->fd, &h, sizeof h, 0) != sizeof h || memcmp(h.magic, MAGIC, sizeof MAGIC))
        return NVML_ERROR_CORRUPTED_INFOROM;
    if (h.version != LAYOUT_VERSION || h.state_size != sizeof(struct sim_state)) return NVML_ERROR_LIB_RM_VERSION_MISMATCH;
    if ((size_t)st.st_size < sizeof(struct sim_file)) return NVML_ERROR_CORRUPTED_INFOROM;
    int protection = s->writable ? PROT_READ | PROT_WRITE : PROT_READ;
    s->file = mmap(NULL, sizeof *s->file, protection, MAP_SHARED, s->fd, 0);
    return s->file == MAP_FAILED ? NVML_ERROR_MEMORY : NVML_SUCCESS;
}

static int still_right(const struct session *s, const char *path, const char *view, const char *visible) {
    struct stat st;
    return s && !strcmp(s->path, path) && !strcmp(s->view_text, view ? view : "") &&
           !strcmp(s->visible_text, visible ? visible : "") && !stat(path, &st) && st.st_ino == s->ino &&
           st.st_dev == s->dev;
}

static void discard(struct session *s) {
    if (s->fd >= 0) close(s->fd);
    free(s->visible_text);
    free(s);
}

static nvmlReturn_t attach(void) {
    const char *path = getenv("NVMLSIM_STATE"), *view = getenv("NVMLSIM_VIEW"), *visible = getenv("NVMLSIM_VISIBLE");
    if (!path || !*path) return NVML_ERROR_DRIVER_NOT_LOADED;
    if (still_right(atomic_load(&current), path, view, visible)) return NVML_SUCCESS;
    struct session *s = calloc(1, sizeof *s);
    if (!s) return NVML_ERROR_MEMORY;
    s->fd = -1;
    nvmlReturn_t rc = parse_view(s, view, visible) ? NVML_ERROR_INVALID_ARGUMENT : map_file(s, path);
    if (rc) discard(s);
    else atomic_store(&current, s);
    return rc;
}

/* ---- reading: parts of one copy, all of one generation ----------------------------------------------------------- */
struct part { void *to; size_t offset, size; };

/* A file cut short under the map would be SIGBUS, not an error. */
static int cut_short(const struct session *s) {
    struct stat st;
    return fstat(s->fd, &st) || (size_t)st.st_size < sizeof(struct sim_file);
}

static void sleep_us(unsigned us) {
    struct timespec t = {us / 1000000, (long)(us % 1000000) * 1000};
    while (nanosleep(&t, &t) && errno == EINTR) {}
}

static void copy_part(const struct part *part, const char *from) {
    size_t done = 0;
#ifdef NVMLSIM_SLOW_COPY                 /* a test build: so slow that writers come in between all the time */
    for (; part->size - done > 2048; done += 2048, sleep_us(20)) memcpy((char *)part->to + done, from + done, 2048);
#endif
    memcpy((char *)part->to + done, from + done, part->size - done);
}

static nvmlReturn_t read_parts(const struct session *s, const struct part *parts, int count) {
    enum { PATIENCE = 100000 };
    for (int attempt = 0; attempt < PATIENCE; attempt++) {
        if (cut_short(s)) return NVML_ERROR_CORRUPTED_INFOROM;
        uint64_t generation = atomic_load_explicit(&s->file->header.generation, memory_order_acquire), inside, after;
        const char *copy = (const char *)&s->file->copy[generation & 1];
        for (int i = 0; i < count; i++) copy_part(&parts[i], copy + parts[i].offset);
        memcpy(&inside, copy, sizeof inside);
        atomic_thread_fence(memory_order_acquire);
        after = atomic_load_explicit(&s->file->header.generation, memory_order_relaxed);
        if (generation == inside && generation == after) return NVML_SUCCESS;
        if (attempt > 100) sched_yield();
    }
    return NVML_ERROR_TIMEOUT;
}
#define PART(to, field) {(to), offsetof(struct sim_state, field), sizeof(((struct sim_state *)0)->field)}

/* ---- handles: numbers, never pointers, so that any garbage can be told from a handle ------------------------------ */
enum { DEVICE_TAG = 0x4e56, INSTANCE_TAG = 0x4749 };
_Static_assert(sizeof(void *) == 8, "handles need 64 bits");

static uintptr_t pack(unsigned tag, unsigned gpu, unsigned slot, uint32_t serial) {
    return (uintptr_t)tag << 48 | (uintptr_t)gpu << 40 | (uintptr_t)slot << 32 | serial;
}
static nvmlDevice_t gpu_handle(unsigned gpu) { return (nvmlDevice_t)pack(DEVICE_TAG, gpu, WHOLE, 0); }
static nvmlDevice_t mig_handle(unsigned gpu, unsigned slot, uint32_t serial) {
    return (nvmlDevice_t)pack(DEVICE_TAG, gpu, slot, serial);
}

/* ---- what this process may see ----------------------------------------------------------------------------------- */
static int listed(const struct session *s, const char *uuid) {
    if (s->view == HOST && !s->visible_count) return 1;
    for (unsigned i = 0; i < s->visible_count; i++)
        if (!strcmp(uuid, s->visible[i])) return 1;
    return 0;
}
static int mig_visible(const struct session *s, const struct sim_gpu *gpu, const struct sim_mig *mig) {
    return mig->serial && gpu->mig_enabled && (listed(s, gpu->uuid) || listed(s, mig->uuid));
}
static int gpu_visible(const struct session *s, const struct sim_gpu *gpu) {
    if (listed(s, gpu->uuid)) return 1;
    for (unsigned k = 0; k < MAX_MIG; k++)
        if (mig_visible(s, gpu, &gpu->mig[k])) return 1;
    return 0;
}

struct fleet { uint32_t count; struct sim_gpu gpu[MAX_GPUS]; };
static nvmlReturn_t read_fleet(const struct session *s, struct fleet *fleet) {
    const struct part parts[] = {PART(&fleet->count, head.gpu_count), PART(fleet->gpu, gpu)};
    nvmlReturn_t rc = read_parts(s, parts, 2);
    return rc ? rc : fleet->count > MAX_GPUS ? NVML_ERROR_CORRUPTED_INFOROM : NVML_SUCCESS;
}

/* ---- the frame of every call: log, snapshot, driver's age, delay, planted error, handle, scope --------------------- */
struct call {
    struct session *session;
    struct sim_head head;
    struct sim_gpu gpu;
    struct sim_mig *mig;                 /* NULL: the GPU itself */
    unsigned gpu_index, slot;
};

static void log_call(struct session *s, enum function f, unsigned gpu, uint32_t serial) {
    if (!s->writable || cut_short(s)) return;
    uint64_t n = atomic_fetch_add(&s->file->header.calls, 1);
    struct log_entry *e = &s->file->log[n % LOG_SIZE];
    e->pid = (uint32_t)getpid();
    e->function = f;
    e->gpu = gpu;
    e->serial = serial;
    atomic_store_explicit(&e->number, n + 1, memory_order_release);
}

static nvmlReturn_t snapshot(struct call *c) {
    const struct part parts[] = {
        PART(&c->head, head),
        {&c->gpu, offsetof(struct sim_state, gpu) + (c->gpu_index % MAX_GPUS) * sizeof(struct sim_gpu), sizeof c->gpu},
    };
    nvmlReturn_t rc = read_parts(c->session, parts, 2);
    return rc ? rc : c->head.fault_count > MAX_FAULTS ? NVML_ERROR_CORRUPTED_INFOROM : NVML_SUCCESS;
}

static void find_faults(const struct call *c, enum function f, uint32_t serial, unsigned *delay, nvmlReturn_t *error) {
    for (unsigned i = 0; i < c->head.fault_count; i++) {
        const struct sim_fault *fault = &c->head.fault[i];
        if (strncmp(fault->function, functions[f].name, TEXT)) continue;
        if (fault->gpu != NONE && (fault->gpu != c->gpu_index || fault->serial != serial)) continue;
        if (fault->delay) *delay = fault->delay;
        if (fault->error) *error = (nvmlReturn_t)fault->error;
    }
}

static nvmlReturn_t resolve(struct call *c, enum scope scope, uint32_t serial) {
    if (c->gpu_index >= c->head.gpu_count || !gpu_visible(c->session, &c->gpu)) return NVML_ERROR_INVALID_ARGUMENT;
    if (c->gpu.health) return (nvmlReturn_t)c->gpu.health;
    if (c->slot != WHOLE) {
        if (c->slot >= MAX_MIG) return NVML_ERROR_INVALID_ARGUMENT;
        c->mig = &c->gpu.mig[c->slot];
        if (!serial || c->mig->serial != serial || !mig_visible(c->session, &c->gpu, c->mig))
            return NVML_ERROR_INVALID_ARGUMENT;                    /* the instance was destroyed */
        if (scope == CARD) return NVML_ERROR_NOT_SUPPORTED;
        if (scope == CARD_ARG) return NVML_ERROR_INVALID_ARGUMENT;
    } else if (scope != ANY && !listed(c->session, c->gpu.uuid)) {
        return NVML_ERROR_NO_PERMISSION;                           /* a container that was given one slice of it */
    }
    return NVML_SUCCESS;
}

static nvmlReturn_t begin(struct call *c, enum function f, nvmlDevice_t device) {
    memset(c, 0, offsetof(struct call, head));
    c->mig = NULL;
    c->session = atomic_load(&current);
    if (!c->session || atomic_load(&users) <= 0) return NVML_ERROR_UNINITIALIZED;
    enum scope scope = functions[f].scope;
    uintptr_t handle = (uintptr_t)device;
    uint32_t serial = (uint32_t)handle;
    int valid = scope == LIBRARY || handle >> 48 == DEVICE_TAG;
    c->gpu_index = scope == LIBRARY || !valid ? NONE : (unsigned)(handle >> 40 & 0xff);
    c->slot = (unsigned)(handle >> 32 & 0xff);
    log_call(c->session, f, c->gpu_index, scope == LIBRARY || !valid ? 0 : serial);
    nvmlReturn_t rc = snapshot(c), error = NVML_SUCCESS;
    if (rc) return rc;
    if (c->head.driver_branch < functions[f].since) return NVML_ERROR_FUNCTION_NOT_FOUND;
    unsigned delay = 0;
    find_faults(c, f, serial, &delay, &error);
    if (delay) {
        sleep_us(delay);
        if ((rc = snapshot(c))) return rc;                         /* a slow call answers what is true at its end */
    }
    if (error) return error;
    if (!valid) return NVML_ERROR_INVALID_ARGUMENT;
    return scope == LIBRARY ? NVML_SUCCESS : resolve(c, scope, serial);
}

/* Declares `c`; returns what the frame says, and INVALID_ARGUMENT where there is nowhere to put the answer. */
#define CALL(name, device, out) \
    struct call c; \
    do { \
        nvmlReturn_t begun = begin(&c, F_##name, device); \
        if (begun) return begun; \
        if (!(out)) return NVML_ERROR_INVALID_ARGUMENT; \
    } while (0)

static nvmlReturn_t put_text(char *out, unsigned size, const char *text) {
    if (strlen(text) >= size) return NVML_ERROR_INSUFFICIENT_SIZE;
    strcpy(out, text);
    return NVML_SUCCESS;
}

/* ---- for our own side: the door tells simulated from real by this symbol, and Python compares the layout ----------- */
API const char *nvmlsimVersion(void);
API unsigned nvmlsimStateSize(void);
API unsigned nvmlsimFileSize(void);
API const char *nvmlsimVersion(void) { return "1"; }
API unsigned nvmlsimStateSize(void) { return sizeof(struct sim_state); }
API unsigned nvmlsimFileSize(void) { return sizeof(struct sim_file); }

/* ---- init, system ---------------------------------------------------------------------------------------------- */
static nvmlReturn_t initialise(enum function f) {
    struct call c = {.gpu_index = NONE};
    pthread_mutex_lock(&init_lock);
    nvmlReturn_t rc = attach();
    if (!rc) {
        c.session = atomic_load(&current);
        log_call(c.session, f, NONE, 0);
        rc = snapshot(&c);
    }
    if (!rc) rc = (nvmlReturn_t)c.head.init_error;
    if (!rc) {
        unsigned delay = 0;
        find_faults(&c, f, 0, &delay, &rc);
        if (delay) sleep_us(delay);
    }
    if (!rc) atomic_fetch_add(&users, 1);
    pthread_mutex_unlock(&init_lock);
    return rc;
}
API nvmlReturn_t nvmlInitWithFlags(unsigned int flags) { (void)flags; return initialise(F_nvmlInitWithFlags); }
API nvmlReturn_t nvmlInit_v2(void) { return initialise(F_nvmlInit_v2); }

API nvmlReturn_t nvmlShutdown(void) {
    struct call c;
    nvmlReturn_t rc = begin(&c, F_nvmlShutdown, NULL);
    if (rc == NVML_ERROR_UNINITIALIZED) return rc;
    pthread_mutex_lock(&init_lock);
    if (atomic_load(&users) > 0) atomic_fetch_sub(&users, 1);
    pthread_mutex_unlock(&init_lock);
    return rc;
}

API const char *nvmlErrorString(nvmlReturn_t result) {
    static const char *const text[] = {
        "Success", "Uninitialized", "Invalid Argument", "Not Supported", "Insufficient Permissions",
        "Already Initialized", "Not Found", "Insufficient Size", "Insufficient External Power", "Driver Not Loaded",
        "Timeout", "Interrupt Request Issue", "NVML Shared Library Not Found", "Function Not Found",
        "Corrupted infoROM", "GPU is lost", "GPU requires restart", "The operating system has blocked the request",
        "Driver/library version mismatch", "In use by another client", "Insufficient Memory", "No data",
        "The requested vgpu operation is not available on target device, because ECC is enabled",
        "Insufficient Resources", "Frequency Not Supported", "The provided version is invalid/unsupported",
    };
    return (unsigned)result < sizeof text / sizeof *text ? text[result] : "Unknown Error";
}

API nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    CALL(nvmlSystemGetDriverVersion, NULL, version);
    return put_text(version, length, c.head.driver);
}
API nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned int length) {
    CALL(nvmlSystemGetNVMLVersion, NULL, version);
    return put_text(version, length, c.head.nvml);
}
API nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version) {
    CALL(nvmlSystemGetCudaDriverVersion, NULL, version);
    *version = (int)c.head.cuda_version;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) {
    CALL(nvmlSystemGetCudaDriverVersion_v2, NULL, version);
    *version = (int)c.head.cuda_version;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlSystemGetProcessName(unsigned int pid, char *name, unsigned int length) {
    CALL(nvmlSystemGetProcessName, NULL, name);
    char path[64], text[1024] = "";
    snprintf(path, sizeof path, "/proc/%u/cmdline", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return NVML_ERROR_NOT_FOUND;
    ssize_t got = read(fd, text, sizeof text - 1);                 /* the first argument ends at its NUL */
    close(fd);
    if (got <= 0 || !*text) return NVML_ERROR_NOT_FOUND;
    return put_text(name, length, text);
}

/* ---- find a device ----------------------------------------------------------------------------------------------- */
API nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) {
    CALL(nvmlDeviceGetCount_v2, NULL, count);
    struct fleet fleet;
    nvmlReturn_t rc = read_fleet(c.session, &fleet);
    if (rc) return rc;
    *count = 0;
    for (unsigned i = 0; i < fleet.count; i++) *count += (unsigned)gpu_visible(c.session, &fleet.gpu[i]);
    return NVML_SUCCESS;
}

/* A GPU that fell off the bus has no handle any more; one that needs a reset still has. */
static nvmlReturn_t hand_out(const struct sim_gpu *gpu, nvmlDevice_t handle, nvmlDevice_t *out) {
    if (gpu->health == NVML_ERROR_GPU_IS_LOST) return NVML_ERROR_GPU_IS_LOST;
    *out = handle;
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
    CALL(nvmlDeviceGetHandleByIndex_v2, NULL, device);
    struct fleet fleet;
    nvmlReturn_t rc = read_fleet(c.session, &fleet);
    if (rc) return rc;
    for (unsigned i = 0; i < fleet.count; i++)
        if (gpu_visible(c.session, &fleet.gpu[i]) && !index--) return hand_out(&fleet.gpu[i], gpu_handle(i), device);
    return NVML_ERROR_INVALID_ARGUMENT;
}
API nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    CALL(nvmlDeviceGetHandleByUUID, NULL, uuid && device);
    struct fleet fleet;
    nvmlReturn_t rc = read_fleet(c.session, &fleet);
    if (rc) return rc;
    for (unsigned i = 0; i < fleet.count; i++) {
        const struct sim_gpu *gpu = &fleet.gpu[i];
        if (!strcmp(uuid, gpu->uuid) && gpu_visible(c.session, gpu)) return hand_out(gpu, gpu_handle(i), device);
        for (unsigned k = 0; k < MAX_MIG; k++)
            if (mig_visible(c.session, gpu, &gpu->mig[k]) && !strcmp(uuid, gpu->mig[k].uuid))
                return hand_out(gpu, mig_handle(i, k, gpu->mig[k].serial), device);
    }
    return NVML_ERROR_NOT_FOUND;
}

static void bus_id(const struct sim_gpu *gpu, int digits, char *out, size_t size) {
    snprintf(out, size, "%0*X:%02X:00.0", digits, 0u, gpu->pci_bus & 0xff);
}
API nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *pciBusId, nvmlDevice_t *device) {
    CALL(nvmlDeviceGetHandleByPciBusId_v2, NULL, pciBusId && device);
    struct fleet fleet;
    nvmlReturn_t rc = read_fleet(c.session, &fleet);
    if (rc) return rc;
    for (unsigned i = 0; i < fleet.count; i++) {
        char text[32], legacy[16];
        bus_id(&fleet.gpu[i], 8, text, sizeof text);
        bus_id(&fleet.gpu[i], 4, legacy, sizeof legacy);
        if (gpu_visible(c.session, &fleet.gpu[i]) && (!strcasecmp(pciBusId, text) || !strcasecmp(pciBusId, legacy)))
            return hand_out(&fleet.gpu[i], gpu_handle(i), device);
    }
    return NVML_ERROR_NOT_FOUND;
}
API nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci) {
    CALL(nvmlDeviceGetPciInfo_v3, device, pci);
    memset(pci, 0, sizeof *pci);
    pci->bus = c.gpu.pci_bus & 0xff;
    pci->pciDeviceId = c.gpu.pci_device_id;
    bus_id(&c.gpu, 4, pci->busIdLegacy, sizeof pci->busIdLegacy);
    bus_id(&c.gpu, 8, pci->busId, sizeof pci->busId);
    return NVML_SUCCESS;
}

/* The place among what this process sees: a container counts from 0. */
API nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index) {
    CALL(nvmlDeviceGetIndex, device, index);
    unsigned before = 0;
    if (c.mig) {
        for (unsigned k = 0; k < c.slot; k++) before += (unsigned)mig_visible(c.session, &c.gpu, &c.gpu.mig[k]);
    } else {
        struct fleet fleet;
        nvmlReturn_t rc = read_fleet(c.session, &fleet);
        if (rc) return rc;
        for (unsigned i = 0; i < c.gpu_index; i++) before += (unsigned)gpu_visible(c.session, &fleet.gpu[i]);
    }
    *index = before;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned int *minor) {
    CALL(nvmlDeviceGetMinorNumber, device, minor);
    *minor = c.gpu_index;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length) {
    CALL(nvmlDeviceGetName, device, name);
    char text[sizeof c.gpu.name + sizeof c.mig->profile + 8];
    if (c.mig) snprintf(text, sizeof text, "%s MIG %s", c.gpu.name, c.mig->profile);
    else snprintf(text, sizeof text, "%s", c.gpu.name);
    return put_text(name, length, text);
}
API nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length) {
    CALL(nvmlDeviceGetUUID, device, uuid);
    return put_text(uuid, length, c.mig ? c.mig->uuid : c.gpu.uuid);
}
API nvmlReturn_t nvmlDeviceGetSerial(nvmlDevice_t device, char *serial, unsigned int length) {
    CALL(nvmlDeviceGetSerial, device, serial);
    return put_text(serial, length, c.gpu.board_serial);
}

/* ---- MIG --------------------------------------------------------------------------------------------------------- */
API nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *currentMode, unsigned int *pendingMode) {
    CALL(nvmlDeviceGetMigMode, device, currentMode && pendingMode);
    if (c.mig) return NVML_ERROR_INVALID_ARGUMENT;
    if (!c.gpu.mig_capable) return NVML_ERROR_NOT_SUPPORTED;
    *currentMode = c.gpu.mig_enabled;
    *pendingMode = c.gpu.mig_pending;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned int *isMigDevice) {
    CALL(nvmlDeviceIsMigDeviceHandle, device, isMigDevice);
    *isMigDevice = c.mig != NULL;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int *count) {
    CALL(nvmlDeviceGetMaxMigDeviceCount, device, count);
    *count = c.gpu.mig_capable ? c.gpu.max_mig : 0;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index, nvmlDevice_t *migDevice) {
    CALL(nvmlDeviceGetMigDeviceHandleByIndex, device, migDevice);
    if (c.mig) return NVML_ERROR_INVALID_ARGUMENT;
    if (!c.gpu.mig_capable) return NVML_ERROR_NOT_SUPPORTED;
    for (unsigned k = 0; k < MAX_MIG; k++) {
        if (!mig_visible(c.session, &c.gpu, &c.gpu.mig[k]) || index--) continue;
        *migDevice = mig_handle(c.gpu_index, k, c.gpu.mig[k].serial);
        return NVML_SUCCESS;
    }
    return NVML_ERROR_NOT_FOUND;
}
API nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t migDevice, nvmlDevice_t *device) {
    CALL(nvmlDeviceGetDeviceHandleFromMigDeviceHandle, migDevice, device);
    if (!c.mig) return NVML_ERROR_INVALID_ARGUMENT;
    *device = gpu_handle(c.gpu_index);
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t device, unsigned int *id) {
    CALL(nvmlDeviceGetGpuInstanceId, device, id);
    if (!c.mig) return NVML_ERROR_NOT_SUPPORTED;
    *id = c.mig->gpu_instance;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t device, unsigned int *id) {
    CALL(nvmlDeviceGetComputeInstanceId, device, id);
    if (!c.mig) return NVML_ERROR_NOT_SUPPORTED;
    *id = c.mig->compute_instance;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t device, nvmlDeviceAttributes_t *attributes) {
    CALL(nvmlDeviceGetAttributes_v2, device, attributes);
    if (!c.mig) return NVML_ERROR_NOT_SUPPORTED;
    memset(attributes, 0, sizeof *attributes);
    attributes->multiprocessorCount = c.mig->multiprocessors;
    attributes->sharedCopyEngineCount = c.mig->compute_slices;
    attributes->gpuInstanceSliceCount = c.mig->compute_slices;
    attributes->computeInstanceSliceCount = c.mig->compute_slices;
    attributes->memorySizeMB = c.mig->total >> 20;
    return NVML_SUCCESS;
}

/* The slots of an instance; as on a real host this needs privilege, which a container has not. */
API nvmlReturn_t nvmlDeviceGetGpuInstanceById(nvmlDevice_t device, unsigned int id, nvmlGpuInstance_t *gpuInstance) {
    CALL(nvmlDeviceGetGpuInstanceById, device, gpuInstance);
    if (c.session->view != HOST) return NVML_ERROR_NO_PERMISSION;
    if (c.mig || !c.gpu.mig_enabled) return NVML_ERROR_NOT_SUPPORTED;
    for (unsigned k = 0; k < MAX_MIG; k++) {
        if (!mig_visible(c.session, &c.gpu, &c.gpu.mig[k]) || c.gpu.mig[k].gpu_instance != id) continue;
        *gpuInstance = (nvmlGpuInstance_t)pack(INSTANCE_TAG, c.gpu_index, k, c.gpu.mig[k].serial);
        return NVML_SUCCESS;
    }
    return NVML_ERROR_NOT_FOUND;
}
API nvmlReturn_t nvmlGpuInstanceGetInfo(nvmlGpuInstance_t gpuInstance, nvmlGpuInstanceInfo_t *info) {
    CALL(nvmlGpuInstanceGetInfo, NULL, info);
    uintptr_t handle = (uintptr_t)gpuInstance;
    unsigned gpu = handle >> 40 & 0xff, slot = handle >> 32 & 0xff;
    if (handle >> 48 != INSTANCE_TAG || gpu >= c.head.gpu_count || slot >= MAX_MIG) return NVML_ERROR_INVALID_ARGUMENT;
    c.gpu_index = gpu;
    nvmlReturn_t rc = snapshot(&c);
    if (rc) return rc;
    if (c.gpu.health) return (nvmlReturn_t)c.gpu.health;
    const struct sim_mig *mig = &c.gpu.mig[slot];
    if (mig->serial != (uint32_t)handle) return NVML_ERROR_INVALID_ARGUMENT;
    *info = (nvmlGpuInstanceInfo_t){gpu_handle(gpu), mig->gpu_instance, mig->profile_id, {mig->start, mig->size}};
    return NVML_SUCCESS;
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */
struct memory { uint64_t total, reserved, used, free; };

/* A GPU in MIG mode uses what its instances use and what it uses itself; never more than there is. */
static struct memory memory_of(const struct call *c) {
    struct memory m = c->mig ? (struct memory){c->mig->total, c->mig->reserved, c->mig->used, 0}
                             : (struct memory){c->gpu.total, c->gpu.reserved, c->gpu.used, 0};
    for (unsigned k = 0; !c->mig && c->gpu.mig_enabled && k < MAX_MIG; k++)
        if (c->gpu.mig[k].serial) m.used += c->gpu.mig[k].used;
    if (m.reserved > m.total) m.reserved = m.total;
    if (m.used > m.total - m.reserved) m.used = m.total - m.reserved;
    m.free = m.total - m.reserved - m.used;
    return m;
}
API nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    CALL(nvmlDeviceGetMemoryInfo, device, memory);
    struct memory m = memory_of(&c);
    *memory = (nvmlMemory_t){.total = m.total, .free = m.free, .used = m.used + m.reserved};
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory) {
    CALL(nvmlDeviceGetMemoryInfo_v2, device, memory);
    if (memory->version != nvmlMemory_v2) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    struct memory m = memory_of(&c);
    memory->total = m.total;
    memory->reserved = m.reserved;
    memory->free = m.free;
    memory->used = m.used;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t device, nvmlBAR1Memory_t *bar1Memory) {
    CALL(nvmlDeviceGetBAR1MemoryInfo, device, bar1Memory);
    unsigned long long total = c.mig ? c.mig->total : c.gpu.total, used = 1 << 20;
    *bar1Memory = (nvmlBAR1Memory_t){.bar1Total = total, .bar1Free = total - used, .bar1Used = used};
    return NVML_SUCCESS;
}

/* ---- cgroup memory limits: the one thing that is written through this library -------------------------------------- */
static struct sim_limit *find_limit(struct sim_state *state, unsigned gpu, const char *cgroup) {
    for (unsigned i = 0; i < MAX_LIMITS; i++) {
        struct sim_limit *l = &state->limit[i];
        if (l->active && l->gpu == gpu && !strncmp(l->cgroup, cgroup, sizeof l->cgroup)) return l;
    }
    return NULL;
}
static nvmlReturn_t put_limit(struct sim_state *state, unsigned gpu, const nvmlSetMemoryLimits_v1_t *wanted) {
    struct sim_limit *l = find_limit(state, gpu, wanted->nameSpace);
    if (!wanted->softLimit && wanted->hardLimit == NVML_DEVICE_MEMORY_LIMIT_MAX) {
        if (l) memset(l, 0, sizeof *l);
        return NVML_SUCCESS;
    }
    for (unsigned i = 0; !l && i < MAX_LIMITS; i++)
        if (!state->limit[i].active) l = &state->limit[i];
    if (!l) return NVML_ERROR_INSUFFICIENT_RESOURCES;
    l->active = 1;
    l->gpu = gpu;
    l->soft = wanted->softLimit;
    l->hard = wanted->hardLimit;
    snprintf(l->cgroup, sizeof l->cgroup, "%s", wanted->nameSpace);
    return NVML_SUCCESS;
}

/* pwrite, not the map: the kernel orders two writes to one file, which Python's side relies on as well. */
static nvmlReturn_t write_limit(const struct session *s, unsigned gpu, const nvmlSetMemoryLimits_v1_t *wanted) {
    nvmlReturn_t rc = NVML_ERROR_OPERATING_SYSTEM;
    struct sim_state *state = malloc(sizeof *state);
    int fd = open(s->path, O_RDWR | O_CLOEXEC);                    /* an flock of its own, also after a fork */
    if (!state || fd < 0 || flock(fd, LOCK_EX)) goto done;
    const struct part all = {state, 0, sizeof *state};
    if ((rc = read_parts(s, &all, 1)) || (rc = put_limit(state, gpu, wanted))) goto done;
    uint64_t next = ++state->head.generation;
    off_t copy = (off_t)(offsetof(struct sim_file, copy) + (next & 1) * sizeof *state);
    if (pwrite(fd, state, sizeof *state, copy) != (ssize_t)sizeof *state ||
        pwrite(fd, &next, sizeof next, offsetof(struct sim_header, generation)) != sizeof next)
        rc = NVML_ERROR_OPERATING_SYSTEM;
done:
    if (fd >= 0) close(fd);
    free(state);
    return rc;
}
API nvmlReturn_t nvmlDeviceSetMemoryLimits_v1(nvmlDevice_t device, nvmlSetMemoryLimits_v1_t *limits) {
    CALL(nvmlDeviceSetMemoryLimits_v1, device, limits && limits->nameSpace);
    if (c.session->view != HOST) return NVML_ERROR_NO_PERMISSION;
    if (c.gpu.mig_enabled) return NVML_ERROR_NOT_SUPPORTED;
    if (limits->softLimit > limits->hardLimit || limits->softLimit > c.gpu.total ||
        (limits->hardLimit > c.gpu.total && limits->hardLimit != NVML_DEVICE_MEMORY_LIMIT_MAX) ||
        strlen(limits->nameSpace) >= sizeof ((struct sim_limit *)0)->cgroup)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (access(limits->nameSpace, F_OK)) return NVML_ERROR_OPERATING_SYSTEM;
    pthread_mutex_lock(&write_lock);
    nvmlReturn_t rc = write_limit(c.session, c.gpu_index, limits);
    pthread_mutex_unlock(&write_lock);
    return rc;
}
API nvmlReturn_t nvmlDeviceGetMemoryLimits_v1(nvmlDevice_t device, nvmlGetMemoryLimits_v1_t *limits) {
    CALL(nvmlDeviceGetMemoryLimits_v1, device, limits && limits->nameSpace);
    if (c.gpu.mig_enabled) return NVML_ERROR_NOT_SUPPORTED;
    if (access(limits->nameSpace, F_OK)) return NVML_ERROR_OPERATING_SYSTEM;
    struct sim_state *state = malloc(sizeof *state);
    if (!state) return NVML_ERROR_MEMORY;
    const struct part part = PART(state->limit, limit);
    nvmlReturn_t rc = read_parts(c.session, &part, 1);
    struct sim_limit *l = rc ? NULL : find_limit(state, c.gpu_index, limits->nameSpace);
    if (!rc && !l) rc = NVML_ERROR_NOT_FOUND;
    if (!rc) {
        limits->softLimit = l->soft;
        limits->hardLimit = l->hard;
        limits->currentUsed = l->used;
    }
    free(state);
    return rc;
}

/* ---- utilisation --------------------------------------------------------------------------------------------------- */
static unsigned percent(double value) { return value > 0 ? value < 100 ? (unsigned)(value + 0.5) : 100 : 0; }

API nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *utilization) {
    CALL(nvmlDeviceGetUtilizationRates, device, utilization);
    if (c.gpu.mig_enabled && !(c.mig && c.gpu.mig_answers_rates)) return NVML_ERROR_NOT_SUPPORTED;
    utilization->gpu = percent(c.mig ? c.mig->utilisation : c.gpu.utilisation);
    utilization->memory = percent(c.mig ? c.mig->memory_utilisation : c.gpu.memory_utilisation);
    return NVML_SUCCESS;
}
static nvmlReturn_t idle_engine(const struct call *c, unsigned *utilization, unsigned *period) {
    if (c->gpu.mig_enabled) return NVML_ERROR_NOT_SUPPORTED;
    *utilization = 0;
    *period = 167000;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetEncoderUtilization(nvmlDevice_t device, unsigned int *utilization, unsigned int *samplingPeriodUs) {
    CALL(nvmlDeviceGetEncoderUtilization, device, utilization && samplingPeriodUs);
    return idle_engine(&c, utilization, samplingPeriodUs);
}
API nvmlReturn_t nvmlDeviceGetDecoderUtilization(nvmlDevice_t device, unsigned int *utilization, unsigned int *samplingPeriodUs) {
    CALL(nvmlDeviceGetDecoderUtilization, device, utilization && samplingPeriodUs);
    return idle_engine(&c, utilization, samplingPeriodUs);
}

/* ---- GPM: two samples, then metrics, each with a return code of its own -------------------------------------------- */
enum { SAMPLE_MAGIC = 0x47504d53, MIN_WINDOW_MS = 100 };
struct nvmlGpmSample_st { uint32_t magic, gpu, serial; double taken_ms, utilisation, memory_utilisation; };

static double monotonic_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}
API nvmlReturn_t nvmlGpmQueryDeviceSupport(nvmlDevice_t device, nvmlGpmSupport_t *gpmSupport) {
    CALL(nvmlGpmQueryDeviceSupport, device, gpmSupport);
    if (gpmSupport->version != NVML_GPM_SUPPORT_VERSION) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    gpmSupport->isSupportedDevice = c.gpu.gpm_supported;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlGpmSampleAlloc(nvmlGpmSample_t *gpmSample) {
    CALL(nvmlGpmSampleAlloc, NULL, gpmSample);
    *gpmSample = calloc(1, sizeof **gpmSample);
    if (!*gpmSample) return NVML_ERROR_MEMORY;
    (*gpmSample)->magic = SAMPLE_MAGIC;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlGpmSampleFree(nvmlGpmSample_t gpmSample) {
    CALL(nvmlGpmSampleFree, NULL, gpmSample);
    if (gpmSample->magic != SAMPLE_MAGIC) return NVML_ERROR_INVALID_ARGUMENT;
    gpmSample->magic = 0;
    free(gpmSample);
    return NVML_SUCCESS;
}
static nvmlReturn_t take_sample(const struct call *c, const struct sim_mig *mig, nvmlGpmSample_t sample) {
    if (sample->magic != SAMPLE_MAGIC) return NVML_ERROR_INVALID_ARGUMENT;
    if (!c->gpu.gpm_supported) return NVML_ERROR_NOT_SUPPORTED;
    sample->gpu = c->gpu_index;
    sample->serial = mig ? mig->serial : 0;
    sample->taken_ms = monotonic_ms();
    sample->utilisation = mig ? mig->utilisation : c->gpu.utilisation;
    sample->memory_utilisation = mig ? mig->memory_utilisation : c->gpu.memory_utilisation;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlGpmSampleGet(nvmlDevice_t device, nvmlGpmSample_t gpmSample) {
    CALL(nvmlGpmSampleGet, device, gpmSample);
    return take_sample(&c, c.mig, gpmSample);
}
API nvmlReturn_t nvmlGpmMigSampleGet(nvmlDevice_t device, unsigned int gpuInstanceId, nvmlGpmSample_t gpmSample) {
    CALL(nvmlGpmMigSampleGet, device, gpmSample);
    if (c.mig) return NVML_ERROR_INVALID_ARGUMENT;
    for (unsigned k = 0; k < MAX_MIG; k++)
        if (mig_visible(c.session, &c.gpu, &c.gpu.mig[k]) && c.gpu.mig[k].gpu_instance == gpuInstanceId)
            return take_sample(&c, &c.gpu.mig[k], gpmSample);
    return NVML_ERROR_NOT_FOUND;
}
API nvmlReturn_t nvmlGpmMetricsGet(nvmlGpmMetricsGet_t *metricsGet) {
    CALL(nvmlGpmMetricsGet, NULL, metricsGet);
    if (metricsGet->version != NVML_GPM_METRICS_GET_VERSION) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    const struct nvmlGpmSample_st *a = metricsGet->sample1, *b = metricsGet->sample2;
    if (!a || !b || a->magic != SAMPLE_MAGIC || b->magic != SAMPLE_MAGIC || a->gpu != b->gpu ||
        a->serial != b->serial || b->taken_ms < a->taken_ms || metricsGet->numMetrics > NVML_GPM_METRIC_MAX)
        return NVML_ERROR_INVALID_ARGUMENT;
    int too_short = b->taken_ms - a->taken_ms < MIN_WINDOW_MS;     /* the counters did not move: 0 / 0 */
    for (unsigned i = 0; i < metricsGet->numMetrics; i++) {
        nvmlGpmMetric_t *m = &metricsGet->metrics[i];
        memset(&m->metricInfo, 0, sizeof m->metricInfo);
        m->nvmlReturn = NVML_SUCCESS;
        if (m->metricId == NVML_GPM_METRIC_SM_UTIL || m->metricId == NVML_GPM_METRIC_GRAPHICS_UTIL) m->value = b->utilisation;
        else if (m->metricId == NVML_GPM_METRIC_DRAM_BW_UTIL) m->value = b->memory_utilisation;
        else m->nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
        if (too_short) m->value = NAN;
    }
    return NVML_SUCCESS;
}

/* ---- processes ------------------------------------------------------------------------------------------------------ */
enum kind { COMPUTE, GRAPHICS, MPS };
struct processes { uint32_t count; struct sim_process entry[MAX_PROCESSES]; };

static nvmlReturn_t read_processes(const struct call *c, struct processes *all) {
    const struct part parts[] = {PART(&all->count, head.process_count), PART(all->entry, process)};
    nvmlReturn_t rc = read_parts(c->session, parts, 2);
    return rc ? rc : all->count > MAX_PROCESSES ? NVML_ERROR_CORRUPTED_INFOROM : NVML_SUCCESS;
}
static int runs_here(const struct call *c, const struct sim_process *p) {
    return p->gpu == c->gpu_index && (!c->mig || p->serial == c->mig->serial);
}
/* Driver 560 inside a container: pids of that namespace, and no memory. */
static int namespaced(const struct call *c) {
    return c->session->view != HOST && c->head.pid_mode == PIDS_NAMESPACED;
}
static void describe(const struct call *c, const struct sim_process *p, nvmlProcessInfo_t *out) {
    *out = (nvmlProcessInfo_t){namespaced(c) ? p->namespaced_pid : p->pid, namespaced(c) ? 0 : p->memory,
                               NO_INSTANCE, NO_INSTANCE};
    for (unsigned k = 0; p->serial && k < MAX_MIG; k++) {
        if (c->gpu.mig[k].serial != p->serial) continue;
        out->gpuInstanceId = c->gpu.mig[k].gpu_instance;
        out->computeInstanceId = c->gpu.mig[k].compute_instance;
    }
}
static nvmlReturn_t list_processes(const struct call *c, enum kind kind, unsigned *count, nvmlProcessInfo_t *infos) {
    struct processes all;
    nvmlReturn_t rc = read_processes(c, &all);
    if (rc) return rc;
    unsigned found = 0, room = infos ? *count : 0;
    for (unsigned i = 0; i < all.count; i++) {
        const struct sim_process *p = &all.entry[i];
        if (p->kind != kind || !runs_here(c, p) || (namespaced(c) && !p->namespaced_pid)) continue;
        if (found < room) describe(c, p, &infos[found]);
        found++;
    }
    *count = found;
    return found > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}
#define LIST_PROCESSES(name, kind) \
    API nvmlReturn_t name(nvmlDevice_t device, unsigned int *infoCount, nvmlProcessInfo_t *infos) { \
        CALL(name, device, infoCount); \
        return list_processes(&c, kind, infoCount, infos); \
    }
LIST_PROCESSES(nvmlDeviceGetComputeRunningProcesses_v2, COMPUTE)
LIST_PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3, COMPUTE)
LIST_PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v2, GRAPHICS)
LIST_PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3, GRAPHICS)
LIST_PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v2, MPS)
LIST_PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v3, MPS)

/* Always host pids, also where the list above has others; nothing newer than asked for is NOT_FOUND. */
API nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device, nvmlProcessUtilizationSample_t *utilization,
                                                 unsigned int *processSamplesCount, unsigned long long lastSeenTimeStamp) {
    CALL(nvmlDeviceGetProcessUtilization, device, processSamplesCount);
    if (c.gpu.mig_enabled) return NVML_ERROR_NOT_SUPPORTED;
    struct processes all;
    nvmlReturn_t rc = read_processes(&c, &all);
    if (rc) return rc;
    unsigned found = 0, room = utilization ? *processSamplesCount : 0;
    for (unsigned i = 0; i < all.count; i++) {
        const struct sim_process *p = &all.entry[i];
        if (!runs_here(&c, p) || p->seen <= lastSeenTimeStamp || isnan(p->utilisation)) continue;
        if (found < room)
            utilization[found] = (nvmlProcessUtilizationSample_t){
                p->pid, p->seen, percent(p->utilisation), percent(p->memory_utilisation), 0, 0};
        found++;
    }
    *processSamplesCount = found;
    if (!found) return NVML_ERROR_NOT_FOUND;
    return found > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

/* ---- the card ------------------------------------------------------------------------------------------------------- */
#define CARD_VALUE(name, type, expression) \
    API nvmlReturn_t name(nvmlDevice_t device, type *value) { \
        CALL(name, device, value); \
        *value = (expression); \
        return NVML_SUCCESS; \
    }
CARD_VALUE(nvmlDeviceGetPowerUsage, unsigned int, c.gpu.power)
CARD_VALUE(nvmlDeviceGetTotalEnergyConsumption, unsigned long long, c.gpu.energy)
CARD_VALUE(nvmlDeviceGetPowerManagementLimit, unsigned int, c.gpu.power_limit)
CARD_VALUE(nvmlDeviceGetEnforcedPowerLimit, unsigned int, c.gpu.power_limit)
CARD_VALUE(nvmlDeviceGetPerformanceState, nvmlPstates_t, 0)
CARD_VALUE(nvmlDeviceGetPersistenceMode, nvmlEnableState_t, 1)
CARD_VALUE(nvmlDeviceGetComputeMode, nvmlComputeMode_t, 0)
CARD_VALUE(nvmlDeviceGetDisplayActive, nvmlEnableState_t, 0)
CARD_VALUE(nvmlDeviceGetDisplayMode, nvmlEnableState_t, 0)
CARD_VALUE(nvmlDeviceGetMaxPcieLinkGeneration, unsigned int, c.gpu.pcie_generation)
CARD_VALUE(nvmlDeviceGetMaxPcieLinkWidth, unsigned int, c.gpu.pcie_width)

API nvmlReturn_t nvmlDeviceGetFanSpeed(nvmlDevice_t device, unsigned int *speed) {
    CALL(nvmlDeviceGetFanSpeed, device, speed);
    if (c.gpu.fan == NONE) return NVML_ERROR_NOT_SUPPORTED;
    *speed = c.gpu.fan;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, nvmlTemperatureSensors_t sensorType, unsigned int *temp) {
    CALL(nvmlDeviceGetTemperature, device, temp && sensorType == 0);
    *temp = c.gpu.temperature;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_t *temperature) {
    CALL(nvmlDeviceGetTemperatureV, device, temperature);
    if (temperature->version != nvmlTemperature_v1) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (temperature->sensorType != 0) return NVML_ERROR_INVALID_ARGUMENT;
    temperature->temperature = (int)c.gpu.temperature;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor) {
    CALL(nvmlDeviceGetCudaComputeCapability, device, major && minor);
    *major = (int)c.gpu.cc_major;
    *minor = (int)c.gpu.cc_minor;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, nvmlMemoryErrorType_t errorType,
                                             nvmlEccCounterType_t counterType, unsigned long long *eccCounts) {
    CALL(nvmlDeviceGetTotalEccErrors, device, eccCounts && errorType < 2 && counterType < 2);
    *eccCounts = 0;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int *clock) {
    CALL(nvmlDeviceGetClockInfo, device, clock && type < 4);
    *clock = type == 2 ? c.gpu.memory_clock : c.gpu.sm_clock;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int *clock) {
    CALL(nvmlDeviceGetMaxClockInfo, device, clock && type < 4);
    *clock = type == 2 ? c.gpu.max_memory_clock : c.gpu.max_sm_clock;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetPcieThroughput(nvmlDevice_t device, nvmlPcieUtilCounter_t counter, unsigned int *value) {
    CALL(nvmlDeviceGetPcieThroughput, device, value && counter < 2);
    *value = counter ? c.gpu.pcie_rx : c.gpu.pcie_tx;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetNvLinkVersion(nvmlDevice_t device, unsigned int link, unsigned int *version) {
    CALL(nvmlDeviceGetNvLinkVersion, device, version);
    (void)link;
    return NVML_ERROR_NOT_SUPPORTED;
}
API nvmlReturn_t nvmlDeviceGetDriverModel_v2(nvmlDevice_t device, nvmlDriverModel_t *currentModel, nvmlDriverModel_t *pendingModel) {
    CALL(nvmlDeviceGetDriverModel_v2, device, currentModel && pendingModel);
    return NVML_ERROR_NOT_SUPPORTED;                               /* Windows only */
}
API nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int valuesCount, nvmlFieldValue_t *values) {
    CALL(nvmlDeviceGetFieldValues, device, values && valuesCount > 0);
    for (int i = 0; i < valuesCount; i++) {
        values[i].nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
        memset(&values[i].value, 0, sizeof values[i].value);
    }
    return NVML_SUCCESS;
}
