//go:build cuda

package driver

import (
	"errors"
	"fmt"
	"sync"

	"gorgonia.org/cu"
)

// ErrNoDriver says that this machine has no libcuda.so.1, or not a whole one.
var ErrNoDriver = errors.New("no CUDA driver")

// load opens the driver, the first time that it is called.
var load = sync.OnceValue(func() error {
	init, err := open()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoDriver, err)
	}
	if init != 0 {
		return failed(-1, init, "initialise the driver")
	}
	return nil
})

// Load opens and initialises the driver unless that was done. It takes some tenths
// of a second, more with many devices.
func Load() error { return load() }

// Devices lists the devices that the driver shows, in its order, which
// CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER choose.
func Devices() ([]Info, error) {
	if err := Load(); err != nil {
		return nil, err
	}
	n, err := cu.NumDevices()
	if err != nil {
		return nil, failed(-1, err, "count devices")
	}
	list := make([]Info, n)
	for i := range list {
		if list[i], err = describe(i); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func describe(ordinal int) (Info, error) {
	dev, err := cu.GetDevice(ordinal)
	if err != nil {
		return Info{}, failed(ordinal, err, "find the device")
	}
	v := cu.Version()
	info := Info{Ordinal: ordinal, Driver: Version{Major: v / 1000, Minor: v % 1000 / 10}}
	if info.Name, err = dev.Name(); err != nil {
		return Info{}, failed(ordinal, err, "read the name")
	}
	if info.Memory, err = dev.TotalMem(); err != nil {
		return Info{}, failed(ordinal, err, "read the size of the memory")
	}
	var domain, bus, slot, kHz, register, readOnly int
	for _, a := range []struct {
		attr cu.DeviceAttribute
		to   *int
	}{
		{cu.ComputeCapabilityMajor, &info.Major},
		{cu.ComputeCapabilityMinor, &info.Minor},
		{cu.PciDomainID, &domain},
		{cu.PciBusID, &bus},
		{cu.PciDeviceID, &slot},
		{cu.MultiprocessorCount, &info.SMs},
		{cu.ClockRate, &kHz},
		{cu.L2CacheSize, &info.L2},
		{attrSharedOptin, &info.Shared},
		{cu.AsyncEngineCount, &info.Engines},
		{attrHostRegister, &register},
		{attrReadOnlyHostRegister, &readOnly},
	} {
		if *a.to, err = dev.Attribute(a.attr); err != nil {
			return Info{}, failed(ordinal, err, "read attribute %d", int(a.attr))
		}
	}
	info.PCI = fmt.Sprintf("%04x:%02x:%02x.0", domain, bus, slot)
	info.Clock = int64(kHz) * 1000
	info.HostRegister, info.ReadOnlyHostRegister = register != 0, readOnly != 0
	return info, nil
}
