/*
 * Flags and projects of files: ioctl(2), answered by Python (matrixfs/fuse/flag_requests.py), and the times that
 * append-only files may get.
 */
#include "extension.h"

#include <errno.h>
#include <linux/fs.h>

static PyObject *on_flags; /* see set_flag_handler */

/*
 * What the kernel asks by itself for ioctl(2) with these commands (fs/fuse/ioctl.c); the version, which it passes on
 * with room for a long, though it is an int; and fstrim(8).  The order is that of matrixfs/fuse/flag_requests.py.
 */
static const struct {
	unsigned int command;
	size_t in, out; /* bytes */
} known_ioctls[] = {
	{FS_IOC_GETFLAGS, 0, sizeof(uint32_t)},
	{FS_IOC_SETFLAGS, sizeof(uint32_t), 0},
	{FS_IOC_FSGETXATTR, 0, sizeof(struct fsxattr)},
	{FS_IOC_FSSETXATTR, sizeof(struct fsxattr), 0},
	{FS_IOC_GETVERSION, 0, sizeof(uint32_t)},
	{FITRIM, sizeof(struct fstrim_range), sizeof(struct fstrim_range)},
};

static void on_ioctl(fuse_req_t request, fuse_ino_t ino, unsigned int command, void *Py_UNUSED(argument),
		     struct fuse_file_info *Py_UNUSED(info), unsigned Py_UNUSED(flags), const void *input,
		     size_t input_bytes, size_t output_bytes)
{
	const struct fuse_ctx *context = fuse_req_ctx(request);
	size_t at, in;

	for (at = 0; at < sizeof(known_ioctls) / sizeof(*known_ioctls); at++) {
		in = known_ioctls[at].in;
		if (command == known_ioctls[at].command && input_bytes >= in && output_bytes >= known_ioctls[at].out) {
			mfs_hand_over(request, &on_flags, (int)at, "(KIiy#)", (unsigned long long)ino,
				      (unsigned int)context->uid, (int)context->pid,
				      in ? (const char *)input : "", (Py_ssize_t)in);
			return;
		}
	}
	fuse_reply_err(request, ENOTTY);
}

/*
 * "Now" for both times is what whoever may write a file may set, where it is append-only too.  pyfuse3 doesn't tell, so
 * Python finds it where a device's number would be, which no request changes.
 */
static void on_setattr(fuse_req_t request, fuse_ino_t ino, struct stat *wanted, int fields, struct fuse_file_info *info)
{
	const int both = FUSE_SET_ATTR_ATIME_NOW | FUSE_SET_ATTR_MTIME_NOW;

	wanted->st_rdev = (fields & both) == both;
	mfs_inner.setattr(request, ino, wanted, fields, info);
}

void mfs_wrap_flags(struct fuse_lowlevel_ops *table)
{
	if (on_flags != NULL)
		table->ioctl = on_ioctl;
	table->setattr = table->setattr == NULL ? NULL : on_setattr;
}

PyDoc_STRVAR(set_flag_handler_doc,
	     "set_flag_handler(request) -> None\n\nHave ioctl(2) for flags and projects of files answered by "
	     "Python, from the next session on; None: by nobody.\nrequest(operation, number, node, uid, pid, "
	     "argument) answers at once or later by reply_ioctl or reply_err.");

static PyObject *set_flag_handler(PyObject *Py_UNUSED(module), PyObject *request)
{
	return mfs_set_handler(&on_flags, request);
}

PyDoc_STRVAR(reply_ioctl_doc,
	     "reply_ioctl(number: int, answer: bytes) -> int\n\nAnswer ioctl with success; answer: what it "
	     "returns.  Returns as reply_err.");

static PyObject *reply_ioctl(PyObject *Py_UNUSED(module), PyObject *args)
{
	unsigned long long number;
	const char *answer;
	Py_ssize_t length;
	fuse_req_t request;

	if (!PyArg_ParseTuple(args, "Ky#:reply_ioctl", &number, &answer, &length))
		return NULL;
	request = mfs_unpark(number);
	return PyLong_FromLong(request == NULL ? ESRCH : -fuse_reply_ioctl(request, 0, answer, (size_t)length));
}

PyMethodDef mfs_flag_methods[] = {
	{"set_flag_handler", set_flag_handler, METH_O, set_flag_handler_doc},
	{"reply_ioctl", reply_ioctl, METH_VARARGS, reply_ioctl_doc},
	{NULL, NULL, 0, NULL},
};
