"""The card as NVML tells it, read only: no clock, power limit or mode is ever set. NVML is loaded by name, so nothing is linked to it."""

import ctypes

SM, MEMORY = 1, 2  # nvmlClockType_t
# nvmlClocksEventReasons: why clocks are below their highest.
REASONS = {0x1: "idle", 0x2: "application clocks", 0x4: "power cap", 0x8: "hardware slowdown", 0x10: "sync boost",
           0x20: "software thermal", 0x40: "hardware thermal", 0x80: "power brake", 0x100: "display clocks"}


class NoCard(Exception):
    pass


class BlindCard:
    """A card that PyTorch sees where NVML does not load: its name, and no clocks."""
    driver = "unknown"

    def __init__(self, name):
        self.name = name

    def clocks(self):
        return {}

    def facts(self):
        return {"name": self.name, "driver": self.driver, "clocks": {}}


class Card:
    def __init__(self, index=0):
        try:
            self.nvml = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError as error:
            raise NoCard(f"NVML, which comes with NVIDIA's driver, does not load: {error}") from None
        if status := self.nvml.nvmlInit_v2():
            raise NoCard(f"NVML does not start: status {status}")
        self.handle = ctypes.c_void_p()
        if status := self.nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(self.handle)):
            raise NoCard(f"NVML knows no card {index}: status {status}")
        self.name = self.text("nvmlDeviceGetName", self.handle)
        self.driver = self.text("nvmlSystemGetDriverVersion")

    def text(self, function, *arguments):
        buffer = ctypes.create_string_buffer(96)
        status = getattr(self.nvml, function)(*arguments, buffer, len(buffer))
        return buffer.value.decode() if status == 0 else "unknown"

    def number(self, function, *arguments, kind=ctypes.c_uint):
        """None where this card or driver does not tell."""
        value = kind()
        try:
            status = getattr(self.nvml, function)(self.handle, *arguments, ctypes.byref(value))
        except AttributeError:
            return None
        return value.value if status == 0 else None

    def clocks(self):
        mask = self.number("nvmlDeviceGetCurrentClocksEventReasons", kind=ctypes.c_ulonglong)
        if mask is None:  # the name of older drivers
            mask = self.number("nvmlDeviceGetCurrentClocksThrottleReasons", kind=ctypes.c_ulonglong)
        watts = self.number("nvmlDeviceGetPowerUsage")
        return {"sm_mhz": self.number("nvmlDeviceGetClockInfo", SM), "memory_mhz": self.number("nvmlDeviceGetClockInfo", MEMORY),
                "celsius": self.number("nvmlDeviceGetTemperature", 0), "watts": watts and watts / 1000,
                "reasons": None if mask is None else [name for bit, name in REASONS.items() if mask & bit]}

    def facts(self):
        return {"name": self.name, "driver": self.driver, "clocks": self.clocks()}
