/*
 * Parked requests: those that Python answers, at once or later.
 */
#include "extension.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>

_Static_assert(sizeof(void *) >= sizeof(uint64_t), "slot numbers travel as the data pointer of an interrupt");

PyObject *mfs_on_interrupted; /* see set_lock_handlers */

struct slot {
	fuse_req_t request; /* NULL: free */
	uint32_t generation;
	uint32_t next_free; /* of a free slot: index of the next one */
};

#define NO_SLOT UINT32_MAX
#define SLOTS_FIRST 64u
#define SLOTS_MAX (1u << 20)

static struct slot *slots; /* grows, never shrinks */
static uint32_t slots_made, first_free = NO_SLOT;
uint32_t mfs_parked;

static int grow_slots(void)
{
	uint32_t wanted = slots_made ? slots_made * 2 : SLOTS_FIRST, index;
	struct slot *grown = wanted > SLOTS_MAX ? NULL : realloc(slots, wanted * sizeof(*slots));

	if (grown == NULL)
		return -1;
	slots = grown;
	for (index = slots_made; index < wanted; index++)
		slots[index] = (struct slot){.next_free = index + 1 < wanted ? index + 1 : NO_SLOT};
	first_free = slots_made;
	slots_made = wanted;
	return 0;
}

/* Parks a request; its number, or 0 when there is no memory (no number is 0: generations begin with 1). */
static uint64_t park(fuse_req_t request)
{
	struct slot *slot;
	uint32_t index;

	if (first_free == NO_SLOT && grow_slots() < 0)
		return 0;
	index = first_free;
	slot = &slots[index];
	first_free = slot->next_free;
	slot->request = request;
	if (++slot->generation == 0)
		slot->generation = 1;
	mfs_parked++;
	return (uint64_t)slot->generation << 32 | index;
}

/*
 * Takes a request out of its slot, to be answered by the caller; NULL when the number is not, or no more, a request's.
 */
fuse_req_t mfs_unpark(uint64_t number)
{
	uint32_t index = (uint32_t)number;
	fuse_req_t request;

	if (index >= slots_made || slots[index].generation != (uint32_t)(number >> 32) || slots[index].request == NULL)
		return NULL;
	request = slots[index].request;
	slots[index].request = NULL;
	slots[index].next_free = first_free;
	first_free = index;
	mfs_parked--;
	return request;
}

void mfs_answer_all(int error)
{
	uint32_t index;
	fuse_req_t request;

	for (index = 0; index < slots_made; index++) {
		request = mfs_unpark((uint64_t)slots[index].generation << 32 | index);
		if (request != NULL)
			fuse_reply_err(request, error);
	}
}

/*
 * A request with a waiting task was interrupted.  libfuse holds the request's mutex here, so it must not be answered
 * here: Python's callable only cancels the task.
 */
static void on_interrupt(fuse_req_t Py_UNUSED(request), void *data)
{
	PyGILState_STATE state = PyGILState_Ensure();

	if (mfs_on_interrupted != NULL) {
		PyObject *callable = mfs_on_interrupted, *result;

		Py_INCREF(callable); /* it may set other handlers */
		result = PyObject_CallFunction(callable, "K", (unsigned long long)(uintptr_t)data);
		if (result == NULL)
			PyErr_WriteUnraisable(callable);
		Py_XDECREF(result);
		Py_DECREF(callable);
	}
	PyGILState_Release(state);
}

/* Calls callable(operation, number, ...); the rest as Py_BuildValue makes a tuple of it. */
static PyObject *call_with(PyObject *callable, int operation, uint64_t number, const char *format, va_list rest)
{
	PyObject *first = Py_BuildValue("(iK)", operation, (unsigned long long)number);
	PyObject *others = Py_VaBuildValue(format, rest);
	PyObject *arguments = first == NULL || others == NULL ? NULL : PySequence_Concat(first, others);
	PyObject *result = arguments == NULL ? NULL : PyObject_CallObject(callable, arguments);

	Py_XDECREF(first);
	Py_XDECREF(others);
	Py_XDECREF(arguments);
	return result;
}

/*
 * Hands a request to Python, whose callable is in `handler`.  It is answered later, or here when Python can't take it.
 */
void mfs_hand_over(fuse_req_t request, PyObject **handler, int operation, const char *format, ...)
{
	PyGILState_STATE state = PyGILState_Ensure();
	PyObject *callable = *handler, *result;
	uint64_t number;
	va_list rest;

	if (callable == NULL || (number = park(request)) == 0) {
		fuse_reply_err(request, callable == NULL ? ENOSYS : ENOMEM);
		PyGILState_Release(state);
		return;
	}
	Py_INCREF(callable);
	va_start(rest, format);
	result = call_with(callable, operation, number, format, rest);
	va_end(rest);
	if (result == NULL) {
		PyErr_WriteUnraisable(callable);
		request = mfs_unpark(number); /* unless it was answered before the exception */
		if (request != NULL)
			fuse_reply_err(request, EIO);
	} else if (number >> 32 == slots[(uint32_t)number].generation && slots[(uint32_t)number].request != NULL) {
		/* Not answered yet.  If the interrupt has come already, this calls on_interrupt. */
		fuse_req_interrupt_func(request, on_interrupt, (void *)(uintptr_t)number);
	}
	Py_XDECREF(result);
	Py_DECREF(callable);
	PyGILState_Release(state);
}

PyObject *mfs_set_handler(PyObject **handler, PyObject *request)
{
	PyObject *old = *handler;

	if (request != Py_None && !PyCallable_Check(request)) {
		PyErr_SetString(PyExc_TypeError, "a callable, or None");
		return NULL;
	}
	*handler = request == Py_None ? NULL : Py_NewRef(request);
	Py_XDECREF(old); /* last: what it frees may call anything */
	Py_RETURN_NONE;
}

PyObject *mfs_set_wanted(int *place, PyObject *wanted)
{
	int truth = PyObject_IsTrue(wanted);

	if (truth < 0)
		return NULL;
	*place = truth;
	Py_RETURN_NONE;
}

PyDoc_STRVAR(reply_err_doc,
	     "reply_err(number: int, error: int) -> int\n\nAnswer a parked request with an errno, 0 for "
	     "success.\nReturns 0, ESRCH when no such request is parked (any more), or the errno of the kernel.");

static PyObject *reply_err(PyObject *Py_UNUSED(module), PyObject *args)
{
	unsigned long long number;
	int error;
	fuse_req_t request;

	if (!PyArg_ParseTuple(args, "Ki:reply_err", &number, &error))
		return NULL;
	request = mfs_unpark(number);
	return PyLong_FromLong(request == NULL ? ESRCH : -fuse_reply_err(request, error));
}

PyMethodDef mfs_parked_methods[] = {
	{"reply_err", reply_err, METH_VARARGS, reply_err_doc},
	{NULL, NULL, 0, NULL},
};
