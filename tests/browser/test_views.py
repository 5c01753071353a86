"What a person sees of the views in JupyterLab: a control is used, and the picture or the text changes."

FASHION = 'from visionlab.all import *\ndm = ImageDataModule("FashionSample", batch_size=32)'
PICTURE = ".visionlab-view .widget-html-content"


def loaded(page):
    "Count the pictures, all of which must have been drawn."
    assert page.evaluate(f"[...document.querySelectorAll('{PICTURE} img')].every(o => o.complete && o.naturalWidth > 0 && o.alt)")
    return page.locator(f"{PICTURE} img").count()


def test_batch_grid(notebook):
    page = notebook.open(FASHION, "dm.show_batch()")
    page.locator(PICTURE).wait_for()
    assert loaded(page) == 16 and "images 1–16" in page.locator(PICTURE).inner_text()
    notebook.changes(lambda: page.get_by_role("button", name="next batch").click(), PICTURE)
    assert "images 17–32" in page.locator(PICTURE).inner_text()
    notebook.changes(lambda: page.locator(".visionlab-view select").select_option("val"), PICTURE)
    assert page.locator(PICTURE).inner_text().startswith("val, epoch 0, images 1–16")
    notebook.changes(lambda: page.get_by_role("button", name="raw images").press("Enter"), PICTURE)       # from the keyboard
    assert "as decoded" in page.locator(PICTURE).inner_text() and loaded(page) == 16
    notebook.shot("grid")


def test_class_balance(notebook):
    page = notebook.open(FASHION, "dm.class_balance()")
    page.locator(PICTURE).wait_for()
    first = lambda: page.locator(f"{PICTURE} tbody th").all_inner_texts()
    assert sorted(first()) == sorted(notebook_classes := first()) and len(notebook_classes) == 10
    notebook.changes(lambda: page.get_by_role("button", name="by name").click(), PICTURE)
    assert first() == sorted(first()) != notebook_classes
    assert page.locator(f"{PICTURE} i").first.bounding_box()["height"] > 5
    notebook.shot("balance")


def test_augmentation_studio(notebook):
    page = notebook.open(FASHION, "studio = dm.preview_augmentations(n_images=3, n_draws=4)\nstudio")
    page.locator(PICTURE).last.wait_for()
    tiles = lambda: page.evaluate(f"[...document.querySelectorAll('{PICTURE} img')].map(o => o.src)")
    first = tiles()
    assert loaded(page) == 15
    page.get_by_label("preset").first.select_option("strong")
    page.wait_for_function(f"a => document.querySelectorAll('{PICTURE} img')[1].src !== a", arg=first[1])
    assert tiles()[0] == first[0]                                            # the image as in validation stays
    assert "preset('strong'" in page.locator(".visionlab-view textarea").input_value()
    strong = tiles()
    page.get_by_role("checkbox", name="VerticalFlip").check()
    page.wait_for_function("document.querySelector('.visionlab-view textarea').value.includes('VerticalFlip')")
    assert tiles() != strong
    notebook.shot("studio")
    notebook.dark()
    notebook.shot("studio-dark")
