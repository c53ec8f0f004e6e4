/*
 * Extended attributes: questions to which the answer is "none" end here, and setxattr's flags reach Python.
 */
#include "extension.h"

#include <errno.h>
#include <linux/limits.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

struct getxattr_request { /* struct fuse_in_header and fuse_getxattr_in; the name follows */
	uint32_t len;
	uint32_t opcode;
	uint64_t unique;
	uint64_t node;
	uint32_t uid, gid, pid, extensions;
	uint32_t size, padding;
};

_Static_assert(sizeof(struct getxattr_request) == 48, "wire format of struct fuse_in_header and fuse_getxattr_in");

/*
 * Nodes without any, as long as this mount holds their locks: Python says so, and takes it back (kernel_caches.py).
 * The kernel asks for security.capability before every write(2); that is answered here.  One node per place: what is
 * pushed out costs a call to Python, no more.
 */
#define BARE_BITS 16

static uint64_t bare[1u << BARE_BITS];
static unsigned long long quick_attributes;

static uint64_t *bare_at(uint64_t node)
{
	return &bare[(node * 0x9E3779B97F4A7C15u) >> (64 - BARE_BITS)];
}

/* For a new session. */
void mfs_forget_bare(void)
{
	memset(bare, 0, sizeof(bare));
}

/* Whether an attribute can have this name; for others Python knows the error. */
static int is_attribute(const char *name)
{
	static const char *const spaces[] = {"user.", "trusted.", "security."};
	size_t length;

	for (size_t i = 0; i < sizeof(spaces) / sizeof(*spaces); i++) {
		length = strlen(spaces[i]);
		if (strncmp(name, spaces[i], length) == 0)
			return name[length] != '\0';
	}
	return strcmp(name, "system.posix_acl_access") == 0 || strcmp(name, "system.posix_acl_default") == 0;
}

/* Answers a question for an attribute of a bare node; whether it was one. */
int mfs_answer_bare(const struct fuse_buf *buffer, size_t length, int fd)
{
	const struct getxattr_request *request = buffer->mem;
	const char *name = (const char *)(request + 1);
	struct notify_header reply = {.len = sizeof(reply), .code = -ENODATA};

	if (length <= sizeof(*request) || buffer->flags & FUSE_BUF_IS_FD || request->opcode != OPCODE_GETXATTR ||
	    *bare_at(request->node) != request->node || memchr(name, '\0', length - sizeof(*request)) == NULL ||
	    !is_attribute(name))
		return 0;
	reply.unique = request->unique;
	if (write(fd, &reply, sizeof(reply)) < 0 && errno != ENOENT) /* ENOENT: the caller is gone */
		return 0;
	quick_attributes++;
	return 1;
}

static void on_listxattr(fuse_req_t request, fuse_ino_t node, size_t size)
{
	if (*bare_at(node) != node) {
		mfs_inner.listxattr(request, node, size);
		return;
	}
	quick_attributes++;
	if (size == 0)
		fuse_reply_xattr(request, 0);
	else
		fuse_reply_buf(request, NULL, 0);
}

/*
 * pyfuse3 acts on the flags itself, with a getxattr before the setxattr: another node may come between.  So it sees
 * none, and Python finds them in front of the name, plus one (attribute_requests.py).
 */
static void on_setxattr(fuse_req_t request, fuse_ino_t node, const char *name, const char *value, size_t size,
			int flags)
{
	char marked[XATTR_NAME_MAX + 2];
	size_t length = strlen(name);

	if (length > XATTR_NAME_MAX || (flags & ~(XATTR_CREATE | XATTR_REPLACE)) != 0) {
		fuse_reply_err(request, length > XATTR_NAME_MAX ? ERANGE : EINVAL);
		return;
	}
	marked[0] = (char)(flags + 1);
	memcpy(marked + 1, name, length + 1);
	mfs_inner.setxattr(request, node, marked, value, size, 0);
}

void mfs_wrap_attributes(struct fuse_lowlevel_ops *table)
{
	table->listxattr = table->listxattr == NULL ? NULL : on_listxattr;
	table->setxattr = table->setxattr == NULL ? NULL : on_setxattr;
}

PyDoc_STRVAR(set_bare_doc,
	     "set_bare(node: int, is_bare: bool) -> None\n\nWhether the node is known to have no extended "
	     "attributes, until the next call: then who asks for one\nis answered without Python.");

static PyObject *set_bare(PyObject *Py_UNUSED(module), PyObject *args)
{
	unsigned long long node;
	int is_bare;
	uint64_t *place;

	if (!PyArg_ParseTuple(args, "Kp:set_bare", &node, &is_bare))
		return NULL;
	place = bare_at(node);
	if (is_bare)
		*place = node;
	else if (*place == node)
		*place = 0;
	Py_RETURN_NONE;
}

PyDoc_STRVAR(bare_answers_doc,
	     "bare_answers() -> int\n\nHow many questions for extended attributes were answered without Python.");

static PyObject *bare_answers(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	return PyLong_FromUnsignedLongLong(quick_attributes);
}

PyMethodDef mfs_attribute_methods[] = {
	{"set_bare", set_bare, METH_VARARGS, set_bare_doc},
	{"bare_answers", bare_answers, METH_NOARGS, bare_answers_doc},
	{NULL, NULL, 0, NULL},
};
