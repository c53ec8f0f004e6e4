/*
 * statx(2): who asks for a time of birth has the kernel (6.6) send STATX, which libfuse (3.14) doesn't know.  It begins
 * as GETATTR does: so that is what it becomes, and is answered by Python (matrixfs/fuse/statx_requests.py).
 */
#include "extension.h"

#include <errno.h>

static PyObject *on_statx; /* see set_statx_handler */
static int is_statx;	   /* the request that libfuse was handed last */

void mfs_note_statx(struct request_header *header)
{
	is_statx = header->opcode == OPCODE_STATX && on_statx != NULL;
	if (is_statx)
		header->opcode = OPCODE_GETATTR;
}

static void on_getattr(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *info)
{
	if (is_statx)
		mfs_hand_over(request, &on_statx, 0, "(K)", (unsigned long long)ino);
	else
		mfs_inner.getattr(request, ino, info);
}

void mfs_wrap_statx(struct fuse_lowlevel_ops *table)
{
	table->getattr = table->getattr == NULL ? NULL : on_getattr;
}

PyDoc_STRVAR(set_statx_handler_doc,
	     "set_statx_handler(request) -> None\n\nHave statx(2) for a time of birth answered by Python; None: by "
	     "nobody.\nrequest(0, number, node) answers at once or later by reply_statx or reply_err.");

static PyObject *set_statx_handler(PyObject *Py_UNUSED(module), PyObject *request)
{
	return mfs_set_handler(&on_statx, request);
}

PyDoc_STRVAR(reply_statx_doc,
	     "reply_statx(number: int, answer: bytes) -> int\n\nAnswer STATX; answer: struct fuse_statx_out.  "
	     "Returns as reply_err.");

static PyObject *reply_statx(PyObject *Py_UNUSED(module), PyObject *args)
{
	unsigned long long number;
	const char *answer;
	Py_ssize_t length;
	fuse_req_t request;

	if (!PyArg_ParseTuple(args, "Ky#:reply_statx", &number, &answer, &length))
		return NULL;
	request = mfs_unpark(number);
	return PyLong_FromLong(request == NULL ? ESRCH : -fuse_reply_buf(request, answer, (size_t)length));
}

PyMethodDef mfs_statx_methods[] = {
	{"set_statx_handler", set_statx_handler, METH_O, set_statx_handler_doc},
	{"reply_statx", reply_statx, METH_VARARGS, reply_statx_doc},
	{NULL, NULL, 0, NULL},
};
