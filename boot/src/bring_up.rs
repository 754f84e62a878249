//! The way from the entry code to [`crate::start::start`], each step on what the one before has put in place.

use core::arch::{asm, global_asm};
use core::sync::atomic::AtomicU32;

use alloc::vec::Vec;
use arch_x86::cpu::control::Protections;
use arch_x86::cpu::gdt::CpuTables;
use arch_x86::cpu::idt;
use arch_x86::cpu::stack::Stacks;
use arch_x86::paging::{self, Access, MapError, PageTables};
use arch_x86::{host, power, time};
use arrayvec::ArrayVec;
use corten_boot::info::{BootInfo, MAX_REGIONS};
use corten_boot::memory::{self, FreeMemory, Problem};
use corten_boot::options::{Notice, Options};
use corten_boot::strings::{self, Strings};
use corten_boot::{console, logger, multiboot2, panic, pvh};
use mm::{FrameSlot, Heap, HostPhys, Lock, Memory, MemoryType, Mfn, PAGE_SIZE, PageSize, Rank, Window};
use spin::Once;
use spin::mutex::{SpinMutex, SpinMutexGuard};

global_asm!(include_str!("entry.S"), options(att_syntax));

/// What the machine is started with.
pub struct Start {
    pub info: &'static BootInfo,
    pub options: Options<'static>,
    pub memory: &'static Memory,
    /// This processor's descriptor tables, for the VMCS's host state.
    pub tables: &'static CpuTables,
    /// The time-stamp counter when the boot loader handed over.
    pub entered_at: u64,
}

#[global_allocator]
static HEAP: Heap = Heap::new();

static INFO: Once<BootInfo> = Once::new();
static ENTERED_AT: Once<u64> = Once::new();
static MEMORY: Once<Memory> = Once::new();
/// Free RAM before there is a frame allocator.
static FREE: Lock<Option<FreeMemory>> = Lock::new(Rank::Frames, None);

/// As in `entry.S`.
const PROTOCOL_MULTIBOOT2: u32 = 0;

/// What the entry code has mapped one to one.
const IDENTITY_LIMIT: u64 = 4 << 30;

/// Bytes of output that may wait for the serial port: what it sends in twenty seconds. Four domains may say as much as they want to at once, and
/// there is still room for others.
const CONSOLE_QUEUE: usize = 256 << 10;

unsafe extern "C" {
    static image_start: u8;
    static text_start: u8;
    static data_start: u8;
    static image_end: u8;
}

/// Entered on the small early stack with the first 4 GiB mapped one to one and the image at its place.
#[unsafe(no_mangle)]
extern "C" fn corten_main(protocol: u32, loader_info: u32, image: u32) -> ! {
    ENTERED_AT.call_once(time::rdtsc);
    panic::init();
    load_early_tables();
    logger::init();

    // SAFETY: the entry code maps all of it, and nothing there is a Rust value but the image's, which is not looked for here.
    let window = unsafe { Window::new(core::ptr::null_mut(), HostPhys(IDENTITY_LIMIT)) };
    let mut problems = ArrayVec::<Problem, 16>::new();
    let info = INFO.call_once(|| read_loader_info(protocol, loader_info, image, &window, &mut problems));

    let options = Options::parse(info.cmdline, |_| {});
    panic::set_no_reboot(options.no_reboot);
    power::set_reset_method(options.reboot);
    console::init(options.console.serial.and_then(|port| options.serial.get(port)));
    console::set_synchronous(options.sync_console);
    logger::set_levels(options.log_level, options.guest_log_level);
    report(info, &problems);

    map_memory(info, &options, window);
    let stacks = Stacks::allocate().unwrap_or_else(|error| panic!("no stacks: {error}"));
    on_stack(stacks)
}

/// Exceptions are reported from the first moment on, if only on one small stack.
fn load_early_tables() {
    #[repr(align(16))]
    struct EarlyStack(#[expect(dead_code, reason = "only its address is used")] [u8; 8192]);
    static TABLES: SpinMutex<CpuTables> = SpinMutex::new(CpuTables::new());
    static STACK: SpinMutex<EarlyStack> = SpinMutex::new(EarlyStack([0; 8192]));
    let stack: &'static mut EarlyStack = SpinMutexGuard::leak(STACK.lock());
    let top = (&raw mut *stack).wrapping_add(1) as u64;
    SpinMutexGuard::leak(TABLES.lock()).load([top; 3]);
    idt::init();
    idt::load();
}

fn read_loader_info(
    protocol: u32,
    loader_info: u32,
    image: u32,
    window: &Window,
    problems: &mut ArrayVec<Problem, 16>,
) -> BootInfo {
    static ROOM: SpinMutex<[u8; strings::ROOM]> = SpinMutex::new([0; strings::ROOM]);
    let room: &'static mut [u8; strings::ROOM] = SpinMutexGuard::leak(ROOM.lock());
    let mut strings = Strings::new(room);
    // Those that find no room are like the others.
    let problem = |problem| {
        let _ = problems.try_push(problem);
    };
    let at = loader_info as usize;
    let mut info = if protocol == PROTOCOL_MULTIBOOT2 {
        // SAFETY: the loader left it there, below 4 GiB and so mapped, and is gone.
        unsafe { multiboot2::read(at, &mut strings, problem) }.unwrap_or_else(|why| {
            stop_early(format_args!("{why}; the boot loader is broken, or what it left was written over"))
        })
    } else {
        pvh::read(window, HostPhys(at as u64), &mut strings, problem)
            .unwrap_or_else(|| stop_early(format_args!("the PVH loader left no start information at {at:#x}")))
    };
    let (start, end) = (&raw const image_start as u64, &raw const image_end as u64);
    info.image = u64::from(image)..u64::from(image) + (end - start);
    info
}

/// Says why Corten cannot even begin, on the console of a machine whose command line is not known.
fn stop_early(why: core::fmt::Arguments<'_>) -> ! {
    let options = Options::default();
    console::init(options.console.serial.and_then(|port| options.serial.get(port)));
    console::set_synchronous(true);
    log::error!(target: "boot", "{why}");
    log::error!("Corten cannot go on; halted");
    console::flush();
    host::halt_forever()
}

fn report(info: &'static BootInfo, problems: &[Problem]) {
    log::info!(target: "boot", "Corten {}, loaded at {:#x} by {}", env!("CARGO_PKG_VERSION"), info.image.start, info.loader_name);
    if cfg!(debug_assertions) {
        log::info!(target: "boot", "assertions are on: lock ranks, arithmetic, what must not be");
    }
    log::info!(target: "boot", "command line: {}", info.cmdline);
    let mut notices = 0;
    Options::parse(info.cmdline, |notice| {
        notices += 1;
        match notice {
            Notice::Ignored(_) => log::info!(target: "cmdline", "{notice}"),
            Notice::Unknown(_) | Notice::Malformed(..) => log::warn!(target: "cmdline", "{notice}"),
        }
    });
    for problem in problems {
        log::warn!(target: "memory", "{problem}");
    }
    for region in &info.memory_map {
        log::info!(target: "memory", "{region}");
    }
    for module in &info.modules {
        let range = module.range();
        log::info!(target: "memory", "module {:#014x}..{:#014x} {}", range.start, range.end, module.cmdline);
    }
}

/// Leaves the entry code's page tables for the final ones.
fn map_memory(info: &BootInfo, options: &Options<'_>, window: Window) {
    let protections = Protections::detect();
    assert!(
        protections.no_execute,
        "Corten needs no-execute pages (NX), which this processor does not have or its firmware has switched off"
    );
    let used = [info.image.clone(), info.loader.clone(), options.memory_limit.unwrap_or(u64::MAX)..u64::MAX];
    let used = used.into_iter().chain(info.modules.iter().map(|module| module.range()));
    *FREE.lock() = Some(FreeMemory::new(&info.memory_map, used));

    let largest = if protections.huge_pages { PageSize::Size1G } else { PageSize::Size2M };
    let tables = build_tables(info, window, largest).unwrap_or_else(|error| panic!("cannot map memory: {error}"));
    // SAFETY: first and only call on this processor; the entry code's mappings use none of the bits that change their meaning.
    unsafe { protections.enable() };
    // SAFETY: the new tables map the image, with it the code that runs and the stack, and all that is in use of RAM. What was
    // seen through the one-to-one map is not looked at again.
    let direct = unsafe {
        asm!("mov cr3, {}", in(reg) tables.root().phys().0, options(nostack, preserves_flags));
        Window::new(paging::DIRECT_MAP as *mut u8, HostPhys(window_limit(info)))
    };
    paging::install(tables.with_window(direct), take_frame);
    log::debug!(target: "paging", "{protections:?}");
}

fn build_tables(info: &BootInfo, window: Window, largest: PageSize) -> Result<PageTables, MapError> {
    let frames = &mut take_early_frame;
    let mut tables = PageTables::new(window, largest, frames)?;
    let borders = [&raw const image_start, &raw const text_start, &raw const data_start, &raw const image_end];
    let borders = borders.map(|border| border as u64);
    for (piece, access) in borders.windows(2).zip([Access::Read, Access::ReadExecute, Access::ReadWrite]) {
        let &[start, end] = piece else { continue };
        let to = HostPhys(info.image.start + (start - paging::IMAGE));
        // Large pages are no use here: a 2 MiB page would span pieces.
        tables.map(start, to, end - start, access, MemoryType::WriteBack, frames)?;
    }
    for (run, memory) in memory::direct_map(&info.memory_map, info.image.clone()) {
        let at = paging::DIRECT_MAP + run.start;
        tables.map(at, HostPhys(run.start), run.end - run.start, Access::ReadWrite, memory, frames)?;
    }
    Ok(tables)
}

/// The window shows all RAM, and firmware's tables above it if there are any.
fn window_limit(info: &BootInfo) -> u64 {
    let end = memory::direct_map(&info.memory_map, 0..0).map(|(run, _)| run.end).last().unwrap_or(0);
    end.next_multiple_of(PAGE_SIZE as u64)
}

fn take_early_frame() -> Option<Mfn> {
    FREE.lock().as_mut()?.take(1, 1)
}

/// A frame for page tables or stacks, from whoever has charge of memory.
fn take_frame() -> Option<Mfn> {
    match MEMORY.get() {
        Some(memory) => memory.allocate(0, None).ok().map(|frames| frames.into_host()),
        None => take_early_frame(),
    }
}

/// Goes on in [`on_own_stack`] on a processor's own stack.
fn on_stack(stacks: Stacks) -> ! {
    static STACKS: Once<Stacks> = Once::new();
    extern "C" fn entered() -> ! {
        let stacks = STACKS.get().copied().unwrap_or_else(|| unreachable!("set before the jump"));
        on_own_stack(stacks)
    }
    let top = STACKS.call_once(|| stacks).main;
    // SAFETY: the stack is mapped and nobody else's; nothing is returned to. The zero frame ends backtraces.
    unsafe {
        asm!("mov rsp, {top}", "xor ebp, ebp", "call {entered}", "ud2", top = in(reg) top, entered = sym entered, options(noreturn));
    }
}

fn on_own_stack(stacks: Stacks) -> ! {
    static TABLES: SpinMutex<CpuTables> = SpinMutex::new(CpuTables::new());
    let tables = SpinMutexGuard::leak(TABLES.lock()).load(stacks.exceptions);

    let info = INFO.get().unwrap_or_else(|| unreachable!("set at entry"));
    let options = Options::parse(info.cmdline, |_| {});
    let memory = start_memory(info);
    start_console(info, &options);
    log::info!(
        target: "memory",
        "{} MiB free; Corten has taken {} KiB",
        memory.free_frames() >> 8,
        FREE.lock().as_ref().map_or(0, |free| free.taken().iter().map(|taken| taken.end - taken.start).sum::<u64>()) >> 10
    );
    let entered_at = ENTERED_AT.get().copied().unwrap_or_default();
    log::debug!(target: "boot", "up after {} thousand cycles", time::rdtsc().wrapping_sub(entered_at) / 1000);
    crate::start::start(Start { info, options, memory, tables, entered_at })
}

/// Hands what RAM is left to the frame allocator, and the allocator to the heap.
fn start_memory(info: &BootInfo) -> &'static Memory {
    // SAFETY: the direct map shows all RAM below the limit, for ever; Rust values there are in frames that were taken.
    let window = unsafe { Window::new(paging::DIRECT_MAP as *mut u8, HostPhys(window_limit(info))) };
    let mut free = FREE.lock();
    let free = free.as_mut().unwrap_or_else(|| unreachable!("set before the page tables"));
    let slots = free.ranges().last().map_or(0, |range| range.end.0);
    let slots_frames = (slots * size_of::<FrameSlot>() as u64).div_ceil(PAGE_SIZE as u64);
    let counters_frames = (Memory::DOMAINS * size_of::<AtomicU32>()).div_ceil(PAGE_SIZE) as u64;
    let frames = slots_frames + counters_frames;
    // The low addresses are for Dom0 and for devices.
    let first = free
        .take_highest(frames, 1)
        .filter(|&first| window.zero_frames(first, frames).is_ok())
        .unwrap_or_else(|| panic!("there is no room for the frame table of {} MiB", (frames * PAGE_SIZE as u64) >> 20));
    // SAFETY: zeroed, as slots and counters may be; aligned, as frames are; taken for good and shown by the direct map for ever; side by side.
    let (table, counters) = unsafe {
        let start = paging::DIRECT_MAP + first.phys().0;
        let counters = start + slots_frames * PAGE_SIZE as u64;
        (
            core::slice::from_raw_parts(start as *const FrameSlot, slots as usize),
            core::slice::from_raw_parts(counters as *const AtomicU32, Memory::DOMAINS),
        )
    };
    let ram: ArrayVec<_, MAX_REGIONS> = free.ranges().collect();
    let memory = MEMORY.call_once(|| Memory::new(window, table, counters, &ram));
    memory.take_from_top(true);
    HEAP.attach(memory);
    memory
}

/// Gives the console its real buffers and a screen.
fn start_console(info: &BootInfo, options: &Options<'_>) {
    let room = |len: usize| {
        let mut buffer = Vec::new();
        buffer.try_reserve_exact(len).ok()?;
        buffer.resize(len, 0u8);
        Some(buffer.leak())
    };
    let history = usize::try_from(options.console_ring).ok().and_then(room);
    match history.zip(room(CONSOLE_QUEUE)) {
        Some((history, queue)) => console::grow(history, queue),
        None => log::warn!(target: "console", "conring_size: not enough memory; the small early buffers stay"),
    }
    if options.console.screen
        && let Some(screen) = open_screen(info)
    {
        console::show_on(screen);
    }
}

fn open_screen(info: &BootInfo) -> Option<console::Screen> {
    const TEXT: HostPhys = HostPhys(0xb8000);
    if let Some(format) = info.framebuffer {
        let len = u64::from(format.pitch) * u64::from(format.height);
        let memory = paging::map_framebuffer(format.at, len).ok()?;
        // SAFETY: mapped just now and for good; Dom0 gets it when the console has given it up.
        return unsafe { console::Screen::pixels(memory, format) };
    }
    if info.efi {
        return None;
    }
    let memory = paging::map_mmio(TEXT, 80 * 25 * 2).ok()?;
    // SAFETY: as above; the text mode is what BIOS leaves.
    unsafe { console::Screen::text(memory) }
}

#[panic_handler]
fn on_panic(info: &core::panic::PanicInfo<'_>) -> ! {
    panic::on_panic(info)
}
