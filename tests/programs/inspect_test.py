"""dydit inspect --svg and --csv: the width plan as a picture and as rows."""

import csv
import xml.etree.ElementTree

import support
from support import CIFAR, TINY, ProgramTest

USAGE = 2


class PlanFilesTest(ProgramTest):
    def test_the_rows_are_the_plan_of_the_json(self):
        plan = self.run_json("inspect", TINY, "--plan-steps", "7", "--csv", "plan.csv")["plan"]
        with open(self.work / "plan.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual(len(rows), 7)
        for row, step in zip(rows, plan["steps"], strict=True):
            self.assertEqual(int(row["timestep"]), step["timestep"])
            self.assertAlmostEqual(float(row["work_share"]), step["work_share"], places=5)
            for kind in ("heads", "groups"):
                self.assertEqual([int(row[f"{kind}_{block}"]) for block in range(len(step[kind]))], step[kind])

    def test_the_picture_is_xml(self):
        self.run_ok("inspect", TINY, "--svg", "plan.svg")
        root = xml.etree.ElementTree.parse(self.work / "plan.svg").getroot()
        self.assertEqual(root.tag, "{http://www.w3.org/2000/svg}svg")

    def test_a_static_model_has_no_plan_to_draw(self):
        for flag in ("--svg", "--csv"):
            self.expect_error(["inspect", CIFAR, flag, "plan.out"], USAGE, flag, "static DiT")
            self.assertFalse((self.work / "plan.out").exists())


if __name__ == "__main__":
    support.main()
