// The precompiled headers' owner: CMake compiles them for this file, every other one takes them from it.
