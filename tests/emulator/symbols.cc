// What the program's own file tells: names of kernels, the section of static shared variables, lines of addresses.
//
// Kernels are often static, so the dynamic symbol table does not have them; the full one is read from the file.
#include "internal.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <map>
#include <mutex>

namespace simt
{

namespace
{

struct Object {
    std::string path;
    uintptr_t base = 0;        // what the loader added to its addresses
    uintptr_t tls_address = 0; // of the thread-local template, as in the file
    size_t tls_bytes = 0, tls_module = 0;
    const char *file = nullptr;
    size_t bytes = 0;
};

const char *map_file(const char *path, size_t *bytes)
{
    struct stat st;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return nullptr;
    const bool is_known = fstat(fd, &st) == 0;
    void *m = is_known ? mmap(nullptr, static_cast<size_t>(st.st_size), PROT_READ, MAP_PRIVATE, fd, 0) : MAP_FAILED;
    close(fd);
    if (m == MAP_FAILED)
        return nullptr;
    *bytes = static_cast<size_t>(st.st_size);
    return static_cast<const char *>(m);
}

// The loaded object (program or library) that holds an address.
Object find_object(const void *address)
{
    struct Search {
        uintptr_t address;
        Object found;
    } search = {reinterpret_cast<uintptr_t>(address), {}};

    dl_iterate_phdr(
        [](dl_phdr_info *info, size_t, void *data) {
            Search &s = *static_cast<Search *>(data);
            bool is_inside = false;
            for (int i = 0; i < info->dlpi_phnum; i++) {
                const ElfW(Phdr) &ph = info->dlpi_phdr[i];
                const uintptr_t start = info->dlpi_addr + ph.p_vaddr;
                is_inside |= ph.p_type == PT_LOAD && s.address >= start && s.address < start + ph.p_memsz;
                if (ph.p_type == PT_TLS) {
                    s.found.tls_address = ph.p_vaddr;
                    s.found.tls_bytes = ph.p_memsz;
                }
            }
            if (!is_inside) {
                s.found.tls_address = s.found.tls_bytes = 0;
                return 0;
            }
            s.found.base = info->dlpi_addr;
            s.found.tls_module = info->dlpi_tls_modid;
            s.found.path = info->dlpi_name && *info->dlpi_name ? info->dlpi_name : "/proc/self/exe";
            return 1;
        },
        &search);
    return search.found;
}

// Opened once for each object; few programs have more than one.
const Object &object_of(const void *address)
{
    static std::mutex mutex;
    static std::map<std::string, Object> objects;
    Object o = find_object(address);

    std::lock_guard<std::mutex> lock(mutex);
    auto it = objects.find(o.path);
    if (it == objects.end()) {
        if (!o.path.empty())
            o.file = map_file(o.path.c_str(), &o.bytes);
        it = objects.emplace(o.path, o).first;
    }
    return it->second;
}

const ElfW(Shdr) * sections(const Object &o, size_t *n)
{
    *n = 0;
    if (!o.file)
        return nullptr;
    const ElfW(Ehdr) *header = reinterpret_cast<const ElfW(Ehdr) *>(o.file);
    if (header->e_shoff + header->e_shnum * sizeof(ElfW(Shdr)) > o.bytes)
        return nullptr;
    *n = header->e_shnum;
    return reinterpret_cast<const ElfW(Shdr) *>(o.file + header->e_shoff);
}

} // namespace

std::string symbol_name(const void *function)
{
    const Object &o = object_of(function);
    const uintptr_t at = reinterpret_cast<uintptr_t>(function) - o.base;
    const char *mangled = nullptr;
    size_t n;
    const ElfW(Shdr) *section = sections(o, &n);

    for (size_t i = 0; i < n && !mangled; i++) {
        if (section[i].sh_type != SHT_SYMTAB && section[i].sh_type != SHT_DYNSYM)
            continue;
        const ElfW(Sym) *symbol = reinterpret_cast<const ElfW(Sym) *>(o.file + section[i].sh_offset);
        for (size_t s = 0; s < section[i].sh_size / sizeof *symbol && !mangled; s++)
            if (symbol[s].st_value == at && (symbol[s].st_info & 0xf) == STT_FUNC)
                mangled = o.file + section[section[i].sh_link].sh_offset + symbol[s].st_name;
    }
    if (!mangled)
        return "?";
    int status;
    char *plain = abi::__cxa_demangle(mangled, nullptr, nullptr, &status);
    std::string name = plain ? plain : mangled;
    free(plain);
    const std::string anonymous = "(anonymous namespace)::";
    for (size_t at_text; (at_text = name.find(anonymous)) != std::string::npos;)
        name.erase(at_text, anonymous.size());
    if (name.compare(0, 5, "void ") == 0) // of a template
        name.erase(0, 5);
    int depth = 0; // of template arguments, which may hold parentheses
    for (size_t i = 0; i < name.size(); i++) {
        depth += name[i] == '<' ? 1 : name[i] == '>' ? -1 : 0;
        if (name[i] == '(' && depth == 0)
            return name.substr(0, i);
    }
    return name;
}

// The section lies in the template of thread locals; each OS thread has a copy at the same offset.
StaticShared static_shared()
{
    static const struct Place {
        uintptr_t offset = 0;
        size_t bytes = 0, module = 0;
        bool is_exact = false;
        Place()
        {
            const Object &o = object_of(reinterpret_cast<const void *>(&run_grid));
            size_t n;
            const ElfW(Shdr) *section = sections(o, &n);
            bytes = o.tls_bytes;
            module = o.tls_module;
            for (size_t i = 0; i < n; i++) {
                const ElfW(Ehdr) *header = reinterpret_cast<const ElfW(Ehdr) *>(o.file);
                const char *name = o.file + section[header->e_shstrndx].sh_offset + section[i].sh_name;
                if (strcmp(name, "simt_shared") == 0) {
                    offset = section[i].sh_addr - o.tls_address;
                    bytes = section[i].sh_size;
                    is_exact = true;
                }
            }
        }
    } place;

    if (!place.bytes)
        return {nullptr, 0, false};
    static thread_local char *tls = [] {
        struct Search {
            size_t module;
            char *tls;
        } search = {place.module, nullptr};
        dl_iterate_phdr(
            [](dl_phdr_info *info, size_t, void *data) {
                Search &s = *static_cast<Search *>(data);
                if (info->dlpi_tls_modid == s.module)
                    s.tls = static_cast<char *>(info->dlpi_tls_data);
                return s.tls ? 1 : 0;
            },
            &search);
        return search.tls;
    }();
    return {tls + place.offset, place.bytes, place.is_exact};
}

// Runs addr2line: slow, but only once in a failing run.
std::string source_line(const void *return_address)
{
    const Object &o = object_of(return_address);
    char path[4096], command[4400], line[1024];
    std::string text;

    if (!realpath(o.path.c_str(), path))
        return "?";
    snprintf(command, sizeof command, "addr2line -i -e '%s' 0x%lx 2>/dev/null", path,
             static_cast<unsigned long>(reinterpret_cast<uintptr_t>(return_address) - 1 - o.base));
    FILE *out = popen(command, "r");
    if (!out)
        return "?";
    while (fgets(line, sizeof line, out)) {
        line[strcspn(line, "\n")] = 0;
        if (char *extra = strstr(line, " (discriminator"))
            *extra = 0;
        if (strstr(line, "/include/simt/")) // the emulation's own inline functions
            continue;
        const char *folder = strstr(line, "/kernels/");
        const char *name = folder ? folder + 1 : strrchr(line, '/') ? strrchr(line, '/') + 1 : line;
        text += (text.empty() ? "" : ", inlined into ") + std::string(name);
    }
    pclose(out);
    return text.empty() ? "?" : text;
}

} // namespace simt
