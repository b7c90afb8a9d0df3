// The tables of kernels. CMakeLists.txt compiles each table once per instruction set, as PREFIXkernels_portable,
// PREFIXkernels_x86_64_v3, … (DDETR_KERNELS) with a name for people (DDETR_KERNELS_NAME). Both are written here only.
#pragma once

#include <stddef.h>
#include <string.h>

#define DDETR_PASTED(a, b) a##b
#define DDETR_JOINED(a, b) DDETR_PASTED(a, b)

// Defines the table of this translation unit's instruction set: DDETR_DEFINE_TABLE(Table, prefix) = {…};
#define DDETR_DEFINE_TABLE(Table, prefix)                 \
  extern const Table DDETR_JOINED(prefix, DDETR_KERNELS); \
  const Table DDETR_JOINED(prefix, DDETR_KERNELS)

// Declares the tables of all instruction sets, and PREFIXtables, an array of pointers to them, the best first.
#ifdef DDETR_X86_64
#define DDETR_DECLARE_TABLES(Table, prefix)                                    \
  extern const Table prefix##kernels_portable;                                 \
  extern const Table prefix##kernels_x86_64_v3, prefix##kernels_x86_64_v4;     \
  constexpr const Table* prefix##tables[] = {                                  \
      &prefix##kernels_x86_64_v4, &prefix##kernels_x86_64_v3, &prefix##kernels_portable}
#else
#define DDETR_DECLARE_TABLES(Table, prefix)    \
  extern const Table prefix##kernels_portable; \
  constexpr const Table* prefix##tables[] = {&prefix##kernels_portable}
#endif

namespace deformable_detr {

// The table with this name, or null.
template <class Table, size_t COUNT>
const Table* table_named(const Table* const (&tables)[COUNT], const char* name) {
  for (const Table* table : tables) {
    if (strcmp(table->name, name) == 0) return table;
  }
  return nullptr;
}

}  // namespace deformable_detr
