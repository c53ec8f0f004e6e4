/*
 * Ranges of a file: fallocate, SEEK_DATA and SEEK_HOLE, copy_file_range, answered by Python
 * (matrixfs/fuse/range_requests.py).
 */
#include "extension.h"

#include <errno.h>
#include <limits.h>

static PyObject *on_range; /* see set_range_handler */

enum { FALLOCATE, LSEEK, COPY_FILE_RANGE };

static void on_fallocate(fuse_req_t request, fuse_ino_t ino, int mode, off_t offset, off_t length,
			 struct fuse_file_info *info)
{
	mfs_name_inode(ino, info);
	mfs_hand_over(request, &on_range, FALLOCATE, "(KiLL)", (unsigned long long)info->fh, mode, (long long)offset,
		      (long long)length);
}

static void on_lseek(fuse_req_t request, fuse_ino_t ino, off_t offset, int whence, struct fuse_file_info *info)
{
	mfs_name_inode(ino, info);
	mfs_hand_over(request, &on_range, LSEEK, "(KLi)", (unsigned long long)info->fh, (long long)offset, whence);
}

static void on_copy_file_range(fuse_req_t request, fuse_ino_t source, off_t at, struct fuse_file_info *reading,
			       fuse_ino_t target, off_t to, struct fuse_file_info *writing, size_t length,
			       int Py_UNUSED(flags))
{
	mfs_name_inode(source, reading);
	mfs_name_inode(target, writing);
	mfs_hand_over(request, &on_range, COPY_FILE_RANGE, "(KKLLL)", (unsigned long long)reading->fh,
		      (unsigned long long)writing->fh, (long long)at, (long long)to,
		      length > (size_t)LLONG_MAX ? LLONG_MAX : (long long)length);
}

void mfs_wrap_ranges(struct fuse_lowlevel_ops *table)
{
	if (on_range != NULL) {
		table->fallocate = on_fallocate;
		table->lseek = on_lseek;
		table->copy_file_range = on_copy_file_range;
	}
}

PyDoc_STRVAR(set_range_handler_doc,
	     "set_range_handler(request) -> None\n\nHave fallocate, SEEK_DATA, SEEK_HOLE and copy_file_range "
	     "answered by Python, from the next session on; None: by nobody.\nrequest(operation, number, ...) "
	     "answers at once or later by reply_err, reply_seek or reply_written.");

static PyObject *set_range_handler(PyObject *Py_UNUSED(module), PyObject *request)
{
	return mfs_set_handler(&on_range, request);
}

PyDoc_STRVAR(reply_seek_doc,
	     "reply_seek(number: int, offset: int) -> int\n\nAnswer lseek.  Returns as reply_err.");

static PyObject *reply_seek(PyObject *Py_UNUSED(module), PyObject *args)
{
	unsigned long long number;
	long long offset;
	fuse_req_t request;

	if (!PyArg_ParseTuple(args, "KL:reply_seek", &number, &offset))
		return NULL;
	request = mfs_unpark(number);
	return PyLong_FromLong(request == NULL ? ESRCH : -fuse_reply_lseek(request, (off_t)offset));
}

PyDoc_STRVAR(reply_written_doc,
	     "reply_written(number: int, count: int) -> int\n\nAnswer copy_file_range with the bytes copied.  "
	     "Returns as reply_err.");

static PyObject *reply_written(PyObject *Py_UNUSED(module), PyObject *args)
{
	unsigned long long number;
	unsigned int count;
	fuse_req_t request;

	if (!PyArg_ParseTuple(args, "KI:reply_written", &number, &count))
		return NULL;
	request = mfs_unpark(number);
	return PyLong_FromLong(request == NULL ? ESRCH : -fuse_reply_write(request, count));
}

PyMethodDef mfs_range_methods[] = {
	{"set_range_handler", set_range_handler, METH_O, set_range_handler_doc},
	{"reply_seek", reply_seek, METH_VARARGS, reply_seek_doc},
	{"reply_written", reply_written, METH_VARARGS, reply_written_doc},
	{NULL, NULL, 0, NULL},
};
