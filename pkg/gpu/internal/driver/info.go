package driver

import "fmt"

// Version is a version of CUDA.
type Version struct{ Major, Minor int }

func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// Info describes a device. It takes no context to know it.
type Info struct {
	Ordinal int
	Name    string
	Major   int // compute capability
	Minor   int
	Driver  Version // the newest CUDA that the driver supports
	PCI     string  // domain:bus:device.function
	Memory  int64   // bytes in all
	SMs     int     // multiprocessors
	Clock   int64   // highest clock of the multiprocessors, Hz
	L2      int     // bytes
	Shared  int     // most dynamic shared memory of a block, bytes
	Engines int     // copies that can run at once beside a kernel

	// Whether host memory can be page-locked where it lies (Context.RegisterHost),
	// and whether that can be done to memory that is mapped for reading only.
	HostRegister         bool
	ReadOnlyHostRegister bool
}
