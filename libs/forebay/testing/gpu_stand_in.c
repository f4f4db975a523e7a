// A stand-in for CUDA's and HIP's runtimes, for tests on machines without a GPU: one device, whose memory is POSIX shared
// memory. Copies are carried out when their stream is waited for and not before, so that whoever does not wait is found out.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { kSuccess = 0, kOutOfMemory = 2, kInvalidDevice = 101, kInvalidHandle = 400, kMany = 64, kNameBytes = 64 };

typedef struct {
  char name[kNameBytes];
} Handle;

typedef struct {
  void* address;
  size_t size;
  Handle handle;
} Allocation;

typedef struct Copy {
  void* to;
  const void* from;
  size_t size;
  struct Copy* next;
} Copy;

typedef struct {
  Copy* first;
  Copy** end;
} Stream;

static Allocation allocations[kMany];  // own ones and opened ones

static size_t limit(void) {
  const char* text = getenv("FOREBAY_STAND_IN_GPU_BYTES");
  return text ? strtoull(text, 0, 10) : (size_t)64 << 20;
}

static Allocation* find(const void* address) {
  for (int i = 0; i < kMany; ++i)
    if (allocations[i].address == address) return &allocations[i];
  return 0;
}

static int map(const char* name, int flags, size_t size, void** address) {
  Allocation* free_one = find(0);
  int file = free_one ? shm_open(name, flags, 0600) : -1;
  if (file < 0) return kInvalidHandle;
  struct stat status;
  if (size ? ftruncate(file, (off_t)size) : fstat(file, &status)) return close(file), kInvalidHandle;
  if (!size) size = (size_t)status.st_size;
  *address = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (*address == MAP_FAILED) return kOutOfMemory;
  *free_one = (Allocation){*address, size, {{0}}};
  snprintf(free_one->handle.name, kNameBytes, "%s", name);
  return kSuccess;
}

static int unmap(void* address) {
  Allocation* one = address ? find(address) : 0;
  if (!one) return kInvalidHandle;
  munmap(one->address, one->size);
  one->address = 0;
  return kSuccess;
}

static int get_device_count(int* count) {
  *count = 1;
  return kSuccess;
}
static int set_device(int device) { return device ? kInvalidDevice : kSuccess; }
static int allocate(void** address, size_t size) {
  static int made = 0;
  char name[kNameBytes];
  if (size > limit()) return kOutOfMemory;
  snprintf(name, sizeof name, "/forebay-stand-in-gpu-%d-%d", (int)getpid(), made++);
  return map(name, O_RDWR | O_CREAT | O_EXCL, size, address);
}
static int release(void* address) {
  Allocation* one = address ? find(address) : 0;
  if (!one) return kInvalidHandle;
  shm_unlink(one->handle.name);
  return unmap(address);
}
static int get_handle(Handle* handle, void* address) {
  Allocation* one = find(address);
  if (!one) return kInvalidHandle;
  *handle = one->handle;
  return kSuccess;
}
static int open_handle(void** address, Handle handle, unsigned flags) {
  (void)flags;
  handle.name[kNameBytes - 1] = 0;
  return map(handle.name, O_RDWR, 0, address);
}
static int host_register(void* address, size_t size, unsigned flags) {
  (void)address, (void)size, (void)flags;
  return kSuccess;
}
static int host_unregister(void* address) {
  (void)address;
  return kSuccess;
}
static int stream_create(void** stream) {
  Stream* made = calloc(1, sizeof *made);
  made->end = &made->first;
  *stream = made;
  return kSuccess;
}
static int copy_async(void* to, const void* from, size_t size, int kind, void* stream) {
  (void)kind;
  Copy* copy = malloc(sizeof *copy);
  *copy = (Copy){to, from, size, 0};
  *((Stream*)stream)->end = copy;
  ((Stream*)stream)->end = &copy->next;
  return kSuccess;
}
static int synchronize(void* stream) {
  Stream* waited = stream;
  for (Copy *copy = waited->first, *next; copy; copy = next) {
    memmove(copy->to, copy->from, copy->size);
    next = copy->next;
    free(copy);
  }
  waited->first = 0;
  waited->end = &waited->first;
  return kSuccess;
}
static int stream_destroy(void* stream) {
  synchronize(stream);
  free(stream);
  return kSuccess;
}
static const char* text_of(int code) {
  switch (code) {
    case kOutOfMemory: return "out of memory";
    case kInvalidDevice: return "invalid device ordinal";
    case kInvalidHandle: return "invalid resource handle";
    default: return "no error";
  }
}

#define RUNTIME(prefix)                                                                                               \
  int prefix##GetDeviceCount(int* count) { return get_device_count(count); }                                         \
  int prefix##SetDevice(int device) { return set_device(device); }                                                   \
  int prefix##Malloc(void** address, size_t size) { return allocate(address, size); }                                \
  int prefix##Free(void* address) { return release(address); }                                                       \
  int prefix##IpcGetMemHandle(Handle* handle, void* address) { return get_handle(handle, address); }                 \
  int prefix##IpcOpenMemHandle(void** address, Handle handle, unsigned flags) {                                      \
    return open_handle(address, handle, flags);                                                                       \
  }                                                                                                                   \
  int prefix##IpcCloseMemHandle(void* address) { return unmap(address); }                                            \
  int prefix##HostRegister(void* address, size_t size, unsigned flags) { return host_register(address, size, flags); } \
  int prefix##HostUnregister(void* address) { return host_unregister(address); }                                     \
  int prefix##StreamCreate(void** stream) { return stream_create(stream); }                                          \
  int prefix##StreamDestroy(void* stream) { return stream_destroy(stream); }                                         \
  int prefix##StreamSynchronize(void* stream) { return synchronize(stream); }                                        \
  int prefix##MemcpyAsync(void* to, const void* from, size_t size, int kind, void* stream) {                         \
    return copy_async(to, from, size, kind, stream);                                                                  \
  }                                                                                                                   \
  const char* prefix##GetErrorString(int code) { return text_of(code); }

RUNTIME(cuda)
RUNTIME(hip)
