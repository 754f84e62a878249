#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
core::arch::global_asm!(include_str!("entry.S"), options(att_syntax));

#[cfg(target_os = "none")]
#[unsafe(no_mangle)]
extern "C" fn corten_main(protocol: u64, info: u64, image: u64) -> ! {
    use core::fmt::Write;
    struct S;
    impl Write for S {
        fn write_str(&mut self, s: &str) -> core::fmt::Result {
            for b in s.bytes() {
                unsafe { x86_64::instructions::port::Port::<u8>::new(0x3f8).write(b) }
            }
            Ok(())
        }
    }
    let _ = write!(S, "hello {protocol} {info:#x} {image:#x}\r\n");
    loop {
        x86_64::instructions::hlt();
    }
}
#[cfg(target_os = "none")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[cfg(not(target_os = "none"))]
fn main() {}
