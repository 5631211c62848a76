"""Images with boxes around objects: VOC devkits, COCO's json, and the bundled scenes.

Read `annotations.py` (what is known of a set's boxes), `coco.py` and `voc.py` (how it is read), then `samples.py`.
"""
