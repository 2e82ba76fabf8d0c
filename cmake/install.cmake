# What `cmake --install` installs: the library, its headers, and how CMake and pkg-config find them.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/pagefill)

install(TARGETS pagefill EXPORT pagefillTargets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/pagefill DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  FILES_MATCHING PATTERN "*.h")
install(EXPORT pagefillTargets NAMESPACE pagefill:: DESTINATION ${config_dir})

configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/pagefillConfig.cmake.in
  ${PROJECT_BINARY_DIR}/pagefillConfig.cmake INSTALL_DESTINATION ${config_dir})
# Before 1.0 a minor version may change the interface.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/pagefillConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/pagefillConfig.cmake
  ${PROJECT_BINARY_DIR}/pagefillConfigVersion.cmake DESTINATION ${config_dir})

# Relative to the .pc file, so that the installed tree can be moved.
set(pc_dir ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
file(RELATIVE_PATH pc_prefix ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
string(REGEX REPLACE "/$" "" pc_prefix "${pc_prefix}")
set(pc_cflags "")
if(NOT BUILD_SHARED_LIBS)
  set(pc_cflags " -DPAGEFILL_STATIC")
endif()
set(pc_libs_private "")
if(PAGEFILL_WITH_CUDA)
  set(pc_libs_private " -L${CUDAToolkit_LIBRARY_DIR} -lcudart_static -lrt -ldl")
endif()
configure_file(${PROJECT_SOURCE_DIR}/cmake/pagefill.pc.in ${PROJECT_BINARY_DIR}/pagefill.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/pagefill.pc DESTINATION ${pc_dir})

if(TARGET pagefill_cli)
  file(RELATIVE_PATH bin_to_lib ${CMAKE_INSTALL_FULL_BINDIR} ${CMAKE_INSTALL_FULL_LIBDIR})
  set_target_properties(pagefill_cli PROPERTIES INSTALL_RPATH "$ORIGIN/${bin_to_lib}")
endif()
