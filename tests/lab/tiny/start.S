/* Where a PV guest begins, and what it says of itself to the domain builder. */
#define __ASSEMBLY__
#include <xen/elfnote.h>

#define NOTE(kind, value) \
	.balign 4; .long 4, 2f - 1f, kind; .asciz "Xen"; 1: value; 2: .balign 4

	.section .note.Xen, "a", @note
	NOTE(XEN_ELFNOTE_XEN_VERSION, .asciz "xen-3.0")
	NOTE(XEN_ELFNOTE_GUEST_OS, .asciz "tiny")
	NOTE(XEN_ELFNOTE_LOADER, .asciz "generic")
	NOTE(XEN_ELFNOTE_PAE_MODE, .asciz "yes")
	NOTE(XEN_ELFNOTE_VIRT_BASE, .quad 0)
	NOTE(XEN_ELFNOTE_PADDR_OFFSET, .quad 0)
	NOTE(XEN_ELFNOTE_ENTRY, .quad _start)
	NOTE(XEN_ELFNOTE_HYPERCALL_PAGE, .quad hypercall_page)
	NOTE(XEN_ELFNOTE_SUSPEND_CANCEL, .long 1)

	.section .text.start, "ax", @progbits
	.globl _start
_start:
	cld
	lea stack_end(%rip), %rsp
	mov %rsi, %rdi
	call run
	ud2

	.text
	.balign 4096
	.globl hypercall_page
hypercall_page:
	.skip 4096

	.bss
	.balign 16
	.skip 16384
stack_end:

	.section .note.GNU-stack, "", @progbits
