"""Prints the load commands of a Mach-O program, and fails where an arm64 Mac could not start it.

Usage: mach-o.py PROGRAM. The layout is of <mach-o/loader.h>.
"""

import struct
import sys

MAGIC_64, CPU_ARM64, EXECUTE = 0xFEEDFACF, 0x0100000C, 2
NAMES = {
    0x02: "LC_SYMTAB",
    0x0B: "LC_DYSYMTAB",
    0x0C: "LC_LOAD_DYLIB",
    0x0E: "LC_LOAD_DYLINKER",
    0x19: "LC_SEGMENT_64",
    0x1B: "LC_UUID",
    0x1D: "LC_CODE_SIGNATURE",
    0x22: "LC_DYLD_INFO",
    0x26: "LC_FUNCTION_STARTS",
    0x29: "LC_DATA_IN_CODE",
    0x2A: "LC_SOURCE_VERSION",
    0x32: "LC_BUILD_VERSION",
    0x8000001C: "LC_RPATH",
    0x80000022: "LC_DYLD_INFO_ONLY",
    0x80000028: "LC_MAIN",
    0x80000033: "LC_DYLD_EXPORTS_TRIE",
    0x80000034: "LC_DYLD_CHAINED_FIXUPS",
}
# What every Mac has; anything else would have to be shipped beside the program.
SYSTEM = ("/usr/lib/", "/System/Library/Frameworks/")
PLATFORM_MACOS = 1


def text(data, start):
    return data[start : data.index(b"\0", start)].decode()


def version(number):
    return f"{number >> 16}.{number >> 8 & 0xFF}"


def main(path):
    data = open(path, "rb").read()
    magic, cpu, _, kind, count, _, _, _ = struct.unpack_from("<8I", data)
    if (magic, cpu, kind) != (MAGIC_64, CPU_ARM64, EXECUTE):
        return [f"{path} is no Mach-O arm64 executable: {magic:#x} {cpu:#x} {kind}"]
    print(f"Mach-O 64-bit arm64 executable, {count} load commands")
    wrong, found, place = [], set(), 32
    for _ in range(count):
        command, size = struct.unpack_from("<2I", data, place)
        name = NAMES.get(command, f"{command:#x}")
        found.add(name)
        if name == "LC_LOAD_DYLIB":
            library = text(data, place + struct.unpack_from("<I", data, place + 8)[0])
            print(f"  {name} {library}")
            if not library.startswith(SYSTEM):
                wrong.append(f"it links {library}, which not every Mac has")
        elif name in ("LC_LOAD_DYLINKER", "LC_RPATH"):
            print(f"  {name} {text(data, place + struct.unpack_from('<I', data, place + 8)[0])}")
        elif name == "LC_BUILD_VERSION":
            platform, least, sdk = struct.unpack_from("<3I", data, place + 8)
            print(f"  {name} platform {platform}, from macOS {version(least)}, SDK {version(sdk)}")
            if platform != PLATFORM_MACOS:
                wrong.append(f"its platform is {platform}, not macOS")
        elif name == "LC_SEGMENT_64":
            segment = data[place + 8 : place + 24].rstrip(b"\0").decode()
            print(f"  {name} {segment}")
        elif name == "LC_CODE_SIGNATURE":
            print(f"  {name} {struct.unpack_from('<2I', data, place + 8)[1]} bytes")
        else:
            print(f"  {name}")
        place += size
    for needed, why in (
        ("LC_MAIN", "it has no entry"),
        ("LC_BUILD_VERSION", "it does not say which macOS it is for"),
        ("LC_CODE_SIGNATURE", "an arm64 Mac starts nothing that is not signed, ad hoc at least"),
        ("LC_LOAD_DYLIB", "it links no libSystem"),
    ):
        if needed not in found:
            wrong.append(f"{needed} is missing: {why}")
    return wrong


if __name__ == "__main__":
    mistakes = main(sys.argv[1])
    print("\n".join(mistakes), file=sys.stderr)
    sys.exit(bool(mistakes))
