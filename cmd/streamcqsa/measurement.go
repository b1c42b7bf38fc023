package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/streamcqsa/streamcqsa/pkg/cpu"
)

// Measurements are kept in one file, one for each processor, kernel and number of
// threads.

func measurementPath() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "streamcqsa", "bench.json"), nil
}

func readMeasurements() (map[string]*cpu.Measurement, error) {
	path, err := measurementPath()
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var list map[string]*cpu.Measurement
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("read measurements in %s: %w", path, err)
	}
	return list, nil
}

func measurementKey(kernel string, threads int) string {
	return fmt.Sprintf("%s, %s, %d threads", processorName(), kernel, threads)
}

// saveMeasurement adds m to the file, which is replaced as a whole. What can't be
// read in it is lost: it can be measured again.
func saveMeasurement(m *cpu.Measurement) error {
	path, err := measurementPath()
	if err != nil {
		return fmt.Errorf("keep the measurement: %w; --save=false does without", err)
	}
	list, err := readMeasurements()
	if err != nil || list == nil {
		list = make(map[string]*cpu.Measurement)
	}
	list[measurementKey(m.Kernel, m.Threads)] = m
	b, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return fmt.Errorf("keep the measurement: %w; --save=false does without", err)
	}
	tmp := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.WriteFile(tmp, append(b, '\n'), 0o666); err != nil {
		return errors.Join(fmt.Errorf("keep the measurement: %w; --save=false does without", err), removeIfThere(tmp))
	}
	return os.Rename(tmp, path)
}

func removeIfThere(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// calibrate gives the device the measurement of its kernel, if there is one. A
// file that can't be read is as good as none: only predictions want it.
func calibrate(dev *cpu.Device) {
	if list, err := readMeasurements(); err == nil {
		dev.Calibrate(list[measurementKey(dev.Kernel(), dev.Threads())])
	}
}

// processorName is how the system calls the processor.
func processorName() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	fields := make(map[string]string) // of the first processor
	for line := range strings.Lines(string(b)) {
		k, v, ok := strings.Cut(line, ":")
		if !ok {
			break
		}
		fields[strings.TrimSpace(k)] = strings.TrimSpace(v)
	}
	name := fields["model name"]
	if name == "" {
		return runtime.GOARCH
	}
	if fields["cpu family"] != "" {
		name += fmt.Sprintf(" (family %s, model %s)", fields["cpu family"], fields["model"])
	}
	return name
}

// ageText says how old a measurement is.
func ageText(t time.Time) string {
	switch age := time.Since(t); {
	case age < time.Hour:
		return "less than an hour old"
	case age < 48*time.Hour:
		n := int(age.Hours())
		return fmt.Sprintf("%d %s old", n, plural(n, "hour"))
	default:
		return fmt.Sprintf("%d days old", int(age.Hours()/24))
	}
}
