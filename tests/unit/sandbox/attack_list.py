"""What a program in a box may try. Each is code that prints ESCAPED where it got what it wanted, and
otherwise says what refused it. `fact` holds what an attacker would find out: process ids, ports, paths."""

HEAD = """
import ctypes, os, resource, signal, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def call(code, *args):
    if code < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return code
def wanted(text):
    print("ESCAPED", text)
"""

ATTACKS = {
    "tcp": "socket.create_connection(('127.0.0.1', fact['tcp']), timeout=5); wanted('connected')",
    "udp": """
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', fact['udp'])); wanted('sent')""",
    "dns": "wanted(socket.getaddrinfo('example.com', 80))",
    "raw socket": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW); wanted('made')",
    "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW); wanted('made')",
    "path socket": "socket.socket(socket.AF_UNIX).connect(fact['path_socket']); wanted('connected')",
    "abstract socket": """
socket.socket(socket.AF_UNIX).connect(chr(0) + fact['abstract']); wanted('connected')""",
    "fork bomb": """
for number in range(500):
    if os.fork() == 0:
        time.sleep(60)
wanted('500 processes')""",
    "thread bomb": """
import _thread
_thread.stack_size(1 << 15)
for number in range(3000):
    _thread.start_new_thread(time.sleep, (60,))
wanted('3000 threads')""",
    "memory bomb": """
held = []
while len(held) < 64:
    held.append(bytearray(b'x') * (16 << 20))
wanted('1 GiB')""",
    "memory file": "fd = os.memfd_create('x'); wanted('made')",
    "root folder": "open('/big', 'w'); wanted('made')",
    "/dev": "open('/dev/big', 'w'); wanted('made')",
    "/etc/shadow": "wanted(open('/etc/shadow').read())",
    "another user's home": "wanted(open(fact['home_file']).read())",
    "home listed": "wanted(os.listdir(fact['home']))",
    "environment": "wanted(os.environ['LAB_SECRET'])",
    "environment of process 1": """
text = open('/proc/1/environ').read()
wanted(text)""",
    "environment of the owner": "wanted(open(f\"/proc/{fact['owner']}/environ\").read())",
    "memory of the owner": "wanted(open(f\"/proc/{fact['owner']}/mem\", 'rb').read(1))",
    "memory of process 1": "wanted(open('/proc/1/mem', 'r+b').read(1))",
    "memory of the parent": "wanted(open(f'/proc/{os.getppid()}/mem', 'r+b').read(1))",
    "files of process 1": "wanted(os.listdir('/proc/1/fd'))",
    "process_vm_readv": "call(libc.process_vm_readv(fact['owner'], None, 0, None, 0, 0)); wanted('read')",
    "write outside": "open(fact['open_folder'] + '/x', 'w'); wanted('written')",
    "write to /usr": "open('/usr/x', 'w'); wanted('written')",
    "overwrite outside": "open(fact['open_file'], 'r+').write('x'); wanted('written')",
    "truncate outside": "os.truncate(fact['open_file'], 0); wanted('truncated')",
    "mode outside": "os.chmod(fact['open_file'], 0o777); wanted('changed')",
    "mode of a readable file": """
fd = os.open(fact['readable'], os.O_RDONLY)
os.fchmod(fd, 0o777)
wanted('changed')""",
    "times outside": "os.utime(fact['open_file'], (0, 0)); wanted('changed')",
    "owner of a file": "os.chown(fact['open_file'], 12345, 12345); wanted('changed')",
    "symbolic link": """
os.symlink(fact['home_file'], 'link')
wanted(open('link').read())""",
    "symbolic link, written": """
os.symlink(fact['open_folder'], 'folder')
open('folder/x', 'w').write('x')
wanted('written')""",
    "hard link": "os.link(fact['open_file'], 'link'); wanted(open('link').read())",
    "hard link to /etc": "os.link('/etc/shadow', 'link'); wanted('made')",
    "way up": "wanted(open('../' * 20 + fact['home_file'].lstrip('/')).read())",
    "chroot": "os.chroot('.'); wanted('changed')",
    "device node": "os.mknod('disk', 0o600 | 0o060000, os.makedev(254, 0)); wanted('made')",
    "character device": "os.mknod('mem', 0o600 | 0o020000, os.makedev(1, 1)); wanted('made')",
    "/dev/mem": "wanted(open('/dev/mem', 'rb').read(1))",
    "/dev/kmsg": "open('/dev/kmsg', 'w').write('x'); wanted('written')",
    "disk": "wanted(open(fact['disk'], 'rb').read(1))",
    "mount": "call(libc.mount(b'x', b'/tmp', b'tmpfs', 0, None)); wanted('mounted')",
    "remount": "call(libc.mount(None, b'/usr', None, 32, None)); wanted('writable')",
    "unmount": "call(libc.umount2(b'/tmp', 2)); wanted('unmounted')",
    "new mount interface": "call(libc.syscall(430, b'tmpfs', 0)); wanted('opened')",
    "pivot_root": "call(libc.syscall(155, b'/tmp', b'/tmp')); wanted('moved')",
    "ptrace": "call(libc.ptrace(16, fact['owner'], None, None)); wanted('attached')",
    "ptrace of process 1": "call(libc.ptrace(16, 1, None, None)); wanted('attached')",
    "ptrace of the parent": "call(libc.ptrace(16, os.getppid(), None, None)); wanted('attached')",
    "kill the owner": "os.kill(fact['owner'], 9); wanted('killed')",
    "kill a bystander": "os.kill(fact['bystander'], 9); wanted('killed')",
    "kill a sibling": "os.kill(fact['sibling'], 9); wanted('killed')",
    "stop the pool": "os.kill(fact['sibling'], signal.SIGSTOP); wanted('stopped')",
    "signal by ownership": """
import fcntl
ours, theirs = socket.socketpair()
fcntl.fcntl(ours, fcntl.F_SETOWN, fact['bystander'])
fcntl.fcntl(ours, fcntl.F_SETFL, os.O_ASYNC)
theirs.send(b'x')
wanted('signalled')""",
    "limits of the owner": """
resource.prlimit(fact['owner'], resource.RLIMIT_CPU, (1, 1)); wanted('limited')""",
    "raise the limits": """
resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40)); wanted('raised')""",
    "priority of others": "os.setpriority(os.PRIO_PROCESS, fact['owner'], 19); wanted('lowered')",
    "user namespace": "call(libc.unshare(0x10000000)); wanted('made')",
    "mount namespace": "call(libc.unshare(0x00020000)); wanted('made')",
    "user namespace by clone": "call(libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0)); wanted('made')",
    "user namespace by clone3": "call(libc.syscall(435, bytes(88), 88)); wanted('made')",
    "join a namespace": "call(libc.setns(0, 0)); wanted('joined')",
    "become root": "os.setuid(0) if os.getuid() else os.setgroups([1]); wanted('changed')",
    "no new privileges": """
wanted('allowed') if libc.prctl(39, 0, 0, 0, 0) != 1 else print('refused: no_new_privs is set')""",
    "capabilities": """
head, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
call(libc.capget(head, sets))
wanted(list(sets)) if any(sets) else print('refused: no capability')""",
    "setuid file": """
open('su', 'w').write('x')
os.chmod('su', 0o4755)
if os.getuid() and not os.stat('su').st_uid:
    wanted('root owns it')
os.execv('/usr/bin/su', ['su', '-c', 'echo ESCAPED'])""",
    "clock": "time.clock_settime(time.CLOCK_REALTIME, 0); wanted('set')",
    "clock adjusted": "call(libc.adjtimex(bytes(208))); wanted('read')",
    "hostname": "socket.sethostname('lab'); wanted('set')",
    "domain": "call(libc.setdomainname(b'lab', 3)); wanted('set')",
    "kernel settings": "open('/proc/sys/kernel/printk', 'w').write('0'); wanted('written')",
    "core pattern": "open('/proc/sys/kernel/core_pattern', 'w').write('|/x'); wanted('written')",
    "reboot": "call(libc.reboot(0)); wanted('rebooted')",
    "kernel keys": "call(libc.syscall(248, b'user', b'x', b'x', 1, -3)); wanted('added')",
    "bpf": "call(libc.syscall(321, 0, None, 0)); wanted('made')",
    "io_uring": "call(libc.syscall(425, 1, bytes(120))); wanted('made')",
    "performance counters": "call(libc.syscall(298, bytes(128), 0, -1, -1, 0)); wanted('made')",
    "shared memory of System V": "call(libc.shmget(0, 1 << 20, 0o1600)); wanted('made')",
    "terminal input": "import fcntl; fcntl.ioctl(0, 0x5412, b'x'); wanted('typed')",
    "outlive the owner": """
call(libc.prctl(1, 0, 0, 0, 0))
print('refused: it dies with process 1') if os.getppid() == 1 else wanted('set')""",
    "open descriptors": """
found = [fd for fd in range(3, 256) if not libc.fcntl(fd, 1) < 0]
wanted(found) if found else print('refused: nothing is open')""",
    "32-bit calls": "wanted(libc.syscall(0x40000000 + 39))",
}

FILLS_THE_DISK = {
    "disk fill": """
held = []
for number in range(2000):
    with open(f'{os.getcwd()}/{number}', 'wb') as file:
        file.write(bytes(1 << 20))
wanted('2 GB')""",
    "disk fill, one file": """
with open('big', 'wb') as file:
    for number in range(2000):
        file.write(bytes(1 << 20))
wanted('2 GB')""",
    "disk fill, shared memory": """
with open('/dev/shm/big', 'wb') as file:
    for number in range(2000):
        file.write(bytes(1 << 20))
wanted('2 GB')""",
}
"""Attacks after which a box has no room."""

PASSES_A_LIMIT = {
    "endless loop": ("while True: pass", {"time_s": 0.5}, "time"),
    "sleeper": ("time.sleep(60)", {"time_s": 0.5}, "time"),
    "10 GB of output": ("while True: os.write(1, bytes(1 << 16))", {}, "output"),
    "output to stderr": ("while True: os.write(2, bytes(1 << 16))", {}, "output"),
}
"""Code, options of the call, and the limit that ends it."""

PASSES_IN_BUBBLEWRAP = {
    "memory of many": (
        """
for number in range(8):
    if os.fork() == 0:
        held = bytearray(b'x') * (100 << 20)
        time.sleep(60)
time.sleep(60)""",
        {"time_s": 60},
        "memory",
    ),
    "fork without end": (
        "while True:\n    try: os.fork()\n    except OSError: pass",
        {"time_s": 0.7},
        "time",
    ),
}
