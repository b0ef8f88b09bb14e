/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * What tests may ask of the sample driver mtty, in /sys/module/mtty/parameters.
 *
 * All are 0 at first: the driver then does what it does without this file, which
 * mtty.py includes behind the driver's own structures and calls from its functions.
 */

#include <linux/delay.h>
#include <linux/mm.h>

static uint pad_kib;
module_param(pad_kib, uint, 0644);
MODULE_PARM_DESC(pad_kib, "KiB behind the state of devices made from now on, checked when it is loaded");

static uint read_msecs;
module_param(read_msecs, uint, 0644);
MODULE_PARM_DESC(read_msecs, "how long a read() of state takes at least");

static uint write_msecs;
module_param(write_msecs, uint, 0644);
MODULE_PARM_DESC(write_msecs, "how long a write() of state takes at least");

static uint short_io;
module_param(short_io, uint, 0644);
MODULE_PARM_DESC(short_io, "how many bytes of state one read() or write() moves at most");

static uint eagain;
module_param(eagain, uint, 0644);
MODULE_PARM_DESC(eagain, "1: the 1st, 3rd, 5th... read() or write() with O_NONBLOCK fails with EAGAIN");

static uint precopy_enomsg;
module_param(precopy_enomsg, uint, 0644);
MODULE_PARM_DESC(precopy_enomsg, "1: at its end, pre-copy data gives ENOMSG and not 0 bytes");

static uint fail_state;
module_param(fail_state, uint, 0644);
MODULE_PARM_DESC(fail_state, "number of the migration state that cannot be entered");

static uint fail_errno;
module_param(fail_errno, uint, 0644);
MODULE_PARM_DESC(fail_errno, "with what entering it fails, 0: EIO");

static uint fail_reset;
module_param(fail_reset, uint, 0644);
MODULE_PARM_DESC(fail_reset, "with what errno VFIO_DEVICE_RESET fails");

/* The driver's own, which come later in its file. */
static ssize_t mtty_save_read(struct file *filp, char __user *buf, size_t len, loff_t *pos);
static ssize_t mtty_resume_write(struct file *filp, const char __user *buf, size_t len, loff_t *pos);
static struct file *mtty_step_state(struct mdev_state *mdev_state, enum vfio_device_mig_state new);
static int mtty_reset(struct mdev_state *mdev_state);

/* The pad ---------------------------------------------------------------------- */

/* For a device that is being made. 1 GiB is as good as without a limit. */
static size_t rig_pad(void)
{
	return (size_t)min(READ_ONCE(pad_kib), 1U << 20) << 10;
}

/* A migration file with room for the pad. The state is its last member. */
static struct mtty_migration_file *rig_alloc(struct mdev_state *mdev_state)
{
	struct mtty_migration_file *migf;

	return kvzalloc(sizeof(*migf) + mdev_state->rig_pad, GFP_KERNEL_ACCOUNT);
}

/*
 * Walk the pad, which begins where the file is filled to: write into it what
 * follows from the scratch register of the first port, or only compare.
 */
static bool rig_walk_pad(struct mtty_migration_file *migf, size_t at, bool write)
{
	u32 *word = (void *)&migf->data + at;
	u32 *end = word + migf->mdev_state->rig_pad / sizeof(*word);
	u32 next = migf->data.ports[0].uart_reg[UART_SCR] + 1;

	for (; word < end; word++) {
		next = next * 1664525 + 1013904223;
		if (write)
			*word = next;
		else if (*word != next)
			return false;
	}
	return true;
}

static void rig_save_pad(struct mtty_migration_file *migf)
{
	rig_walk_pad(migf, migf->filled_size, true);
	migf->filled_size += migf->mdev_state->rig_pad;
}

static bool rig_pad_is_whole(struct mtty_migration_file *migf, size_t data_size)
{
	return rig_walk_pad(migf, data_size - migf->mdev_state->rig_pad, false);
}

/* Reads and writes of state ---------------------------------------------------- */

/* With the file's lock held, as work on the device's part would be done. */
static void rig_work(uint msecs)
{
	if (msecs)
		msleep(msecs);
}

static bool rig_try_again(struct file *filp)
{
	struct mtty_migration_file *migf = filp->private_data;

	if (!READ_ONCE(eagain) || !(filp->f_flags & O_NONBLOCK))
		return false;
	return atomic_inc_return(&migf->rig_calls) & 1;
}

static size_t rig_shorten(size_t len)
{
	uint most = READ_ONCE(short_io);

	return most ? min_t(size_t, len, most) : len;
}

static ssize_t rig_save_read(struct file *filp, char __user *buf, size_t len, loff_t *pos)
{
	struct mtty_migration_file *migf = filp->private_data;
	enum vfio_device_mig_state state;
	ssize_t ret;

	if (rig_try_again(filp))
		return -EAGAIN;
	ret = mtty_save_read(filp, buf, rig_shorten(len), pos);
	if (ret || !len || !READ_ONCE(precopy_enomsg))
		return ret;
	state = READ_ONCE(migf->mdev_state->state);
	if (state == VFIO_DEVICE_STATE_PRE_COPY || state == VFIO_DEVICE_STATE_PRE_COPY_P2P)
		return -ENOMSG;
	return ret;
}

static ssize_t rig_resume_write(struct file *filp, const char __user *buf, size_t len, loff_t *pos)
{
	if (rig_try_again(filp))
		return -EAGAIN;
	return mtty_resume_write(filp, buf, rig_shorten(len), pos);
}

/* States ----------------------------------------------------------------------- */

static struct file *rig_step_state(struct mdev_state *mdev_state, enum vfio_device_mig_state new)
{
	uint refused = READ_ONCE(fail_state), error = READ_ONCE(fail_errno);

	if (refused && new == refused)
		return ERR_PTR(error && error <= MAX_ERRNO ? -(int)error : -EIO);
	return mtty_step_state(mdev_state, new);
}

static int rig_reset(struct mdev_state *mdev_state)
{
	uint error = READ_ONCE(fail_reset);

	return error ? -(int)error : mtty_reset(mdev_state);
}
