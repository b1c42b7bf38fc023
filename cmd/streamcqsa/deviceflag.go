package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/streamcqsa/streamcqsa/pkg/gpu"
)

const deviceWords = "auto, cpu, cuda, cuda:all, or a list like cuda:0,cuda:1"

// deviceChoice is what --device asks for: neither is auto.
type deviceChoice struct {
	cpu  bool
	cuda bool
	all  bool  // every CUDA device
	list []int // ordinals of CUDA devices, if not all
}

// parseDevice reads --device. Whether there is such a device is not looked at.
func parseDevice(s string) (deviceChoice, error) {
	switch s {
	case "auto":
		return deviceChoice{}, nil
	case "cpu":
		return deviceChoice{cpu: true}, nil
	case "cuda":
		return deviceChoice{cuda: true, list: []int{0}}, nil
	case "cuda:all":
		return deviceChoice{cuda: true, all: true}, nil
	}
	c := deviceChoice{cuda: true}
	for name := range strings.SplitSeq(s, ",") {
		digits, ok := strings.CutPrefix(name, "cuda:")
		n, err := strconv.ParseUint(digits, 10, 16)
		switch {
		case name == "cpu" || name == "auto" || name == "cuda:all":
			return deviceChoice{}, usagef("--device %s: %s can't be part of a list; want %s", s, name, deviceWords)
		case !ok || err != nil:
			return deviceChoice{}, usagef("--device %s: %q is not a device; want %s", s, name, deviceWords)
		case slices.Contains(c.list, int(n)):
			return deviceChoice{}, usagef("--device %s: cuda:%d is there twice", s, n)
		}
		c.list = append(c.list, int(n))
	}
	return c, nil
}

// choose picks the devices asked for, in the order asked for, from those there are.
func (c deviceChoice) choose(have []gpu.Info) ([]gpu.Info, error) {
	if c.all {
		return have, nil
	}
	var chosen []gpu.Info
	for _, n := range c.list {
		if n >= len(have) {
			return nil, fmt.Errorf("there is no cuda:%d: this machine has %d CUDA %s", n, len(have), plural(len(have), "device"))
		}
		chosen = append(chosen, have[n])
	}
	return chosen, nil
}
