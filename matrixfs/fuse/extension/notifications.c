/*
 * Notifications: what the kernel is told to forget, in messages that libfuse doesn't have.
 */
#include "extension.h"

#include <errno.h>
#include <linux/limits.h>
#include <sys/uio.h>
#include <unistd.h>

/* From the kernel's fuse.h; older headers lack the newer ones. */
#define NOTIFY_INVAL_ENTRY 3
#define NOTIFY_INC_EPOCH 8
#define NOTIFY_PRUNE 9
#define EXPIRE_ONLY 1u

struct notify_entry {
	uint64_t parent;
	uint32_t name_length;
	uint32_t flags;
};

struct notify_prune {
	uint32_t count;
	uint32_t padding;
	uint64_t spare;
};

_Static_assert(sizeof(struct notify_prune) == 16, "wire format of struct fuse_notify_prune_out");
_Static_assert(sizeof(struct notify_entry) == 16, "wire format of struct fuse_notify_inval_entry_out");

PyDoc_STRVAR(inc_epoch_doc,
	     "notify_inc_epoch() -> int\n\nHave every name of the mount looked up again on next use.  Never "
	     "blocks.\nReturns 0 or an errno: EINVAL from kernels before 6.16, EBADF without a session.");

static PyObject *notify_inc_epoch(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	struct notify_header header = {.len = sizeof(header), .code = NOTIFY_INC_EPOCH, .unique = 0};
	int fd = mfs_current_fd();

	if (fd < 0)
		return PyLong_FromLong(EBADF);
	/* One counter in the kernel: quicker than letting go of the GIL. */
	return PyLong_FromLong(write(fd, &header, sizeof(header)) < 0 ? errno : 0);
}

PyDoc_STRVAR(expire_entry_doc,
	     "notify_expire_entry(parent: int, name: bytes) -> int\n\nHave one name looked up again on next use, "
	     "without unhashing it: a directory that is\nsomebody's working directory keeps its path.  Blocks "
	     "while the kernel holds the parent's lock: call it in a worker thread.\nReturns 0 or an errno: ENOENT "
	     "when the kernel doesn't know it.");

static PyObject *notify_expire_entry(PyObject *Py_UNUSED(module), PyObject *args)
{
	unsigned long long parent;
	Py_buffer name;
	struct notify_header header;
	struct notify_entry entry;
	char terminator = '\0';
	int fd, result = 0;

	if (!PyArg_ParseTuple(args, "Ky*:notify_expire_entry", &parent, &name))
		return NULL;
	fd = mfs_current_fd();
	if (fd < 0 || name.len > NAME_MAX) {
		PyBuffer_Release(&name);
		return PyLong_FromLong(fd < 0 ? EBADF : ENAMETOOLONG);
	}
	header = (struct notify_header){
		.len = (uint32_t)(sizeof(header) + sizeof(entry) + (size_t)name.len + 1), .code = NOTIFY_INVAL_ENTRY};
	entry = (struct notify_entry){.parent = parent, .name_length = (uint32_t)name.len, .flags = EXPIRE_ONLY};
	struct iovec parts[] = {
		{&header, sizeof(header)}, {&entry, sizeof(entry)}, {name.buf, (size_t)name.len}, {&terminator, 1}};
	Py_BEGIN_ALLOW_THREADS /* the buffer stays pinned until its release */
	if (writev(fd, parts, 4) < 0)
		result = errno;
	Py_END_ALLOW_THREADS
	PyBuffer_Release(&name);
	return PyLong_FromLong(result);
}

PyDoc_STRVAR(notify_prune_doc,
	     "notify_prune(node: int) -> int\n\nHave the kernel drop the names of an inode that nobody uses, and "
	     "so forget it.\nReturns 0 or an errno: EINVAL from kernels before 6.18, EBADF without a session.");

static PyObject *notify_prune(PyObject *Py_UNUSED(module), PyObject *args)
{
	unsigned long long node;
	struct {
		struct notify_header header;
		struct notify_prune prune;
		uint64_t node;
	} message = {{sizeof(message), NOTIFY_PRUNE, 0}, {1, 0, 0}, 0};
	int fd = mfs_current_fd(), result = 0;

	if (!PyArg_ParseTuple(args, "K:notify_prune", &node))
		return NULL;
	if (fd < 0)
		return PyLong_FromLong(EBADF);
	message.node = node;
	Py_BEGIN_ALLOW_THREADS
	if (write(fd, &message, sizeof(message)) < 0)
		result = errno;
	Py_END_ALLOW_THREADS
	return PyLong_FromLong(result);
}

PyMethodDef mfs_notification_methods[] = {
	{"notify_inc_epoch", notify_inc_epoch, METH_NOARGS, inc_epoch_doc},
	{"notify_expire_entry", notify_expire_entry, METH_VARARGS, expire_entry_doc},
	{"notify_prune", notify_prune, METH_VARARGS, notify_prune_doc},
	{NULL, NULL, 0, NULL},
};
