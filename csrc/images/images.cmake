# The module `_images`: reads and checks records, and decodes JPEG where libjpeg-turbo is found (PRUNEFAST_JPEG is AUTO,
# ON or OFF). Apart from `_native`, so that a libjpeg that cannot be loaded takes nothing else with it.
set(PRUNEFAST_JPEG "AUTO" CACHE STRING "JPEG by libjpeg-turbo: AUTO (where its headers are found), ON or OFF")
set_property(CACHE PRUNEFAST_JPEG PROPERTY STRINGS AUTO ON OFF)

find_package(Threads REQUIRED)
add_library(prunefast_images STATIC csrc/images/baseline.cpp csrc/images/mapped.cpp csrc/images/records.cpp
                                     csrc/images/resample.cpp csrc/images/xxh3.cpp)
target_include_directories(prunefast_images PUBLIC csrc/include PRIVATE csrc/images)
target_compile_options(prunefast_images PRIVATE -O3 -Wall -Wextra)
target_link_libraries(prunefast_images PUBLIC Threads::Threads)
if(PRUNEFAST_SANITIZE)
  target_compile_options(prunefast_images PUBLIC -fsanitize=address,undefined -fno-sanitize-recover=all -g)
  target_link_options(prunefast_images PUBLIC -fsanitize=address,undefined)
endif()

if(NOT PRUNEFAST_JPEG STREQUAL "OFF")
  find_package(JPEG QUIET)
  if(JPEG_FOUND)
    # Decoding a window needs jpeg_crop_scanline, which libjpeg-turbo has since 1.5 and other libjpegs do not.
    include(CheckCXXSourceCompiles)
    set(CMAKE_REQUIRED_INCLUDES ${JPEG_INCLUDE_DIRS})
    set(CMAKE_REQUIRED_LIBRARIES ${JPEG_LIBRARIES})
    check_cxx_source_compiles("#include <cstdio>
      #include <jpeglib.h>
      int main() { return reinterpret_cast<long>(&jpeg_crop_scanline) == 0; }" PRUNEFAST_HAS_CROP_SCANLINE)
    unset(CMAKE_REQUIRED_INCLUDES)
    unset(CMAKE_REQUIRED_LIBRARIES)
  endif()
  if(PRUNEFAST_HAS_CROP_SCANLINE)
    target_sources(prunefast_images PRIVATE csrc/images/jpeg.cpp)
    target_compile_definitions(prunefast_images PRIVATE PRUNEFAST_JPEG)
    target_link_libraries(prunefast_images PUBLIC JPEG::JPEG)
    message(STATUS "prunefast: JPEG by ${JPEG_LIBRARIES}")
  elseif(PRUNEFAST_JPEG STREQUAL "ON")
    message(FATAL_ERROR "PRUNEFAST_JPEG=ON: no libjpeg-turbo with its headers (libjpeg-turbo8-dev, libjpeg62-turbo-dev, "
                        "libjpeg-turbo-devel)")
  else()
    message(STATUS "prunefast: no libjpeg-turbo; JPEG through simplejpeg or Pillow")
  endif()
endif()
